#!/usr/bin/env bash
# A Slurm on this machine, of one node or of NODES of one core each that it plays, for as long as a command runs: to try
# `hydra/launcher=submitit_slurm` without a cluster.
#
#     benchmarks/slurm_local.sh robustcli evaluate --multirun seed=0,1 hydra/launcher=submitit_slurm
#     NODES=2 benchmarks/slurm_local.sh srun --nodes=2 robustcli train-mat trainer.accumulation=2
#     benchmarks/slurm_local.sh bash        # a shell in which sbatch, squeue and scancel work
#
# Run as root, on Debian or Ubuntu with `apt-get install slurm-wlm munge`; nothing is installed here. Everything it writes
# stands in a directory of its own under /tmp, and is gone at the end with the daemons and their jobs.
# Fit for trying alone: no cgroups, hence no limit of memory; and no accounting, in place of which a small `sacct`, by which
# submitit asks for the states of jobs, reads them from the controller.
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
PATH=$PATH:/usr/sbin:/sbin
for name in slurmctld slurmd munged; do
  command -v "$name" > /dev/null || { echo "error: $name was not found: apt-get install slurm-wlm munge" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "error: slurmd starts jobs as their users, for which it has to be root: use sudo" >&2; exit 2; }

place=$(mktemp -d /tmp/slurm_local.XXXXXX)  # not in TMPDIR: munge wants a path that all may enter
mkdir -p "$place"/{munge,state,spool,log,bin}
chmod 755 "$place"
chmod 700 "$place/munge"
host=$(hostname -s)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cores=$(env -u OMP_NUM_THREADS nproc)
names=("$host")
if ((${NODES:-1} > 1)); then
  mapfile -t names < <(seq -f "$host-%g" "$NODES")
  memory=$((memory / NODES)) cores=1
  export MASTER_ADDR=127.0.0.1  # where the tasks of a job meet, since no resolver knows the nodes
fi
nodes=$(for name in "${names[@]}"; do
  echo "NodeName=$name NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=$cores RealMemory=$memory State=UNKNOWN"
done)

cat > "$place/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$(free_port)
FirstJobId=$(($(date +%s) % 60000000 + 1))
AuthType=auth/munge
AuthInfo=cred_expire=5,socket=$place/munge/socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool/%n
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd-%n.pid
SlurmctldLogFile=$place/log/slurmctld
SlurmdLogFile=$place/log/slurmd-%n
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
MinJobAge=86400
JobRequeue=1
$nodes
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF

# The columns that submitit asks for, of all jobs that the controller remembers.
cat > "$place/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
echo "JobID|State|NodeList"
squeue --noheader --states=all --array --format='%i|%T|%N'
SACCT
chmod +x "$place/bin/sacct"

export SLURM_CONF=$place/slurm.conf PATH=$place/bin:$PATH
# Sessions of their own: Ctrl-C, which reaches all of this one, must not end them before their jobs are cancelled.
daemons=()
end() {
  if ((${#daemons[@]} == 2 + ${#names[@]})); then
    scancel --quiet --user=root 2> /dev/null || true
    for _ in $(seq 40); do [ -n "$(squeue --noheader 2> /dev/null)" ] || break; sleep 0.5; done
  fi
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill "${daemons[i]}" 2> /dev/null || true; done
  wait "${daemons[@]}" 2> /dev/null || true
  rm -rf "$place"
}
trap end EXIT

head -c 1024 /dev/urandom > "$place/munge/key"
chmod 600 "$place/munge/key"
chmod 711 "$place/munge"  # the socket is for all users
setsid munged --foreground --key-file="$place/munge/key" --socket="$place/munge/socket" --pid-file="$place/munge/pid" \
  --log-file="$place/munge/log" --seed-file="$place/munge/seed" > "$place/log/munged" 2>&1 &
daemons+=($!)
for _ in $(seq 100); do [ -S "$place/munge/socket" ] && break; sleep 0.1; done
[ -S "$place/munge/socket" ] || { tail -n 3 "$place/log/munged" >&2; echo "error: munged did not come up" >&2; exit 1; }
setsid slurmctld -D -f "$SLURM_CONF" > /dev/null 2>&1 &
daemons+=($!)
for name in "${names[@]}"; do
  mkdir -p "$place/spool/$name"
  setsid slurmd -D -N "$name" -f "$SLURM_CONF" > /dev/null 2>&1 &
  daemons+=($!)
done
up() { [ "$(sinfo --noheader --Node --format=%T 2> /dev/null | sort -u)" = idle ]; }
for _ in $(seq 150); do up && break; sleep 0.2; done
up || {
  tail -n 5 "$place"/log/* >&2
  echo "error: Slurm did not come up; its last lines stand above" >&2
  exit 1
}
"$@"
