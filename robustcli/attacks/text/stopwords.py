"""Stop words: grammar rather than content, neither replaced nor inserted by a word attack. A list of our own."""

_LISTS = (
    "a an the this that these those",
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves",
    "he him his himself she her hers herself it its itself they them their theirs themselves one oneself",
    "who whom whose which what where when why how",
    "someone somebody something anyone anybody anything everyone everybody everything nobody nothing none",
    "some any each every either neither both all no not nor few many much more most other another such same",
    "am is are was were be been being do does did doing done have has had having",
    "can could may might must shall should will would ought",
    "isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't can't couldn't won't wouldn't shouldn't",
    "isn aren wasn weren don doesn didn haven hasn hadn couldn won wouldn shouldn mustn needn shan ll ve re",
    "and or but if because as until while although though unless whereas whether since so than then yet",
    "of at by for with about against between into through during before after above below to from up down in out on",
    "off over under across along amid among around behind beneath beside besides beyond despite inside near onto",
    "outside past per throughout toward towards underneath unlike upon via within without",
    "again further once here there very too just only also even ever never still already almost quite rather",
)

STOP_WORDS: frozenset[str] = frozenset(word for line in _LISTS for word in line.split())
