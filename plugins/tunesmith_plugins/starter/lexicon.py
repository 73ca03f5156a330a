"""The words the generator of dialogues is made of: people, topics, days, reasons and turns of phrase.

Everything here is plain data written for this project. Rudeness stays at the level of a grumpy neighbour.
Every word occurs often in what is generated, so that a vocabulary of under a thousand tokens covers all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = (
    "Adam", "Alice", "Anna", "Ben", "Bella", "Carl", "Clara", "Dan", "Dora", "Emil", "Emma", "Felix", "Fiona", "George",
    "Grace", "Hugo", "Ida", "Jack", "Julia", "Karl", "Kate", "Leo", "Lily", "Max", "Mia", "Nina", "Oscar", "Paul",
    "Rosa", "Sam", "Tom", "Vera",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("morning", "afternoon", "evening")
REASONS = (
    "a cold", "the rain", "a deadline", "a headache", "too much work", "the traffic", "an early flight", "a sick baby",
    "a broken leg", "the snow", "a long night", "a bad back", "a family lunch", "the storm",
)  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """One thing two people talk about.

    Attributes:
        things: what it can be about; one word each.
        polite, rude: opening lines, with the fields `{b}` (who is addressed), `{t}` (the thing), `{w}` (when; dropped
            with the blank before it where the time is only told later).
        does, did: the request in the present and the past tense, after the asker's name and an adverb.
        will: the request as a question about the one who answers.
        label: the request as a noun phrase.
    """

    things: tuple[str, ...]
    polite: tuple[str, ...]
    rude: tuple[str, ...]
    does: str
    did: str
    will: str
    label: str


TOPICS = {
    "borrow": Topic(
        tuple(
            "ladder drill tent suitcase bicycle camera umbrella guitar blender map projector kettle scarf lamp".split()
        ),
        ("Hi {b}, could you please lend me your {t} {w}?", "Hello {b}, may I borrow your {t} {w}, please?"),
        ("{b}, give me your {t} {w}.", "Hey {b}, I need your {t} {w}, so hand it over."),
        "asks {b} to lend the {t}", "asked {b} to lend the {t}", "Will {b} lend the {t}?", "borrowing the {t}",
    ),
    "invite": Topic(
        tuple(
            "party picnic concert dinner film match wedding play barbecue exhibition festival lecture hike brunch".split()
        ),
        ("Hi {b}, would you like to come to the {t} {w}?", "Dear {b}, you are warmly invited to the {t} {w}."),
        ("{b}, you have to come to the {t} {w}, no excuses.", "Hey {b}, even you can come to the {t} {w}."),
        "invites {b} to the {t}", "invited {b} to the {t}", "Will {b} come to the {t}?", "the {t} with friends",
    ),
    "help": Topic(
        tuple("garden homework essay roof fence taxes kitchen car computer piano cake report speech laptop".split()),
        (
            "Hi {b}, could you please help me with the {t} {w}?",
            "Hello {b}, I would be so happy about some help with the {t} {w}.",
        ),
        ("{b}, get up and help me with the {t} {w}.", "Hey {b}, stop being lazy and help with the {t} {w}."),
        "asks {b} to help with the {t}",
        "asked {b} to help with the {t}",
        "Will {b} help with the {t}?",
        "help with the {t}",
    ),
    "buy": Topic(
        tuple("sofa desk phone fridge boat tablet mirror carpet oven jacket watch printer stove bed".split()),
        ("Hi {b}, I would love to buy your {t} {w}, please.", "Hello {b}, may I buy your beautiful {t} {w}?"),
        ("{b}, sell me that ugly {t} {w}.", "Hey {b}, your {t} is junk, but sell it to me {w}."),
        "offers to buy the {t} from {b}", "offered to buy the {t} from {b}", "Will {b} sell the {t}?", "buying the {t}",
    ),
    "schedule": Topic(
        tuple(
            "meeting interview lesson exam appointment call rehearsal training haircut checkup workshop review visit tour".split()
        ),
        (
            "Hi {b}, could we please move the {t}, perhaps to meet {w}?",
            "Hello {b}, would you mind moving the {t} so that we meet {w}?",
        ),
        ("{b}, your {t} is a waste of time, move it so that we meet {w}.", "Hey {b}, move the {t} now, we meet {w}."),
        "asks {b} to move the {t}", "asked {b} to move the {t}", "Will {b} move the {t}?", "moving the {t}",
    ),
    "complain": Topic(
        tuple("soup pizza noise smell heating parcel bill delay shower coffee service room wifi salad".split()),
        (
            "Excuse me {b}, there is a problem with the {t}, could you please fix it {w}?",
            "Hello {b}, sorry to trouble you, the {t} is not good, may we hope for better {w}?",
        ),
        ("{b}, the {t} is terrible, fix it {w}.", "Hey {b}, you are useless, the {t} is awful, do something {w}."),
        "complains to {b} about the {t}",
        "complained to {b} about the {t}",
        "Will {b} fix the {t}?",
        "trouble with the {t}",
    ),
    "apologise": Topic(
        tuple("vase window plate bowl toy statue cup door radio chair bottle clock basin doll".split()),
        ("Dear {b}, I am so sorry that I broke your {t} {w}.", "Hi {b}, please forgive me, I dropped your {t} {w}."),
        ("{b}, fine, I broke your silly {t} {w}, get over it.", "Hey {b}, I dropped your {t} {w}, so what?"),
        "apologises to {b} for the broken {t}",
        "apologised to {b} for the broken {t}",
        "Will {b} forgive the broken {t}?",
        "the broken {t}",
    ),
    "fetch": Topic(
        tuple(
            "laundry groceries medicine tickets keys letters children dog cat flowers newspaper luggage bread grandmother".split()
        ),
        ("Hi {b}, could you please pick up the {t} {w}?", "Hello {b}, would you be so kind and pick up the {t} {w}?"),
        ("{b}, go and pick up the {t} {w}.", "Hey {b}, move your feet and pick up the {t} {w}."),
        "asks {b} to pick up the {t}",
        "asked {b} to pick up the {t}",
        "Will {b} pick up the {t}?",
        "picking up the {t}",
    ),
    "travel": Topic(
        tuple("beach lake castle zoo museum island market forest village harbour mountain park farm spa".split()),
        ("Hi {b}, shall we go to the {t} together {w}?", "Dear {b}, I would love to see the {t} with you {w}."),
        ("{b}, you are boring, come to the {t} {w}.", "Hey {b}, stop complaining, we go to the {t} {w}."),
        "suggests a trip to the {t} to {b}",
        "suggested a trip to the {t} to {b}",
        "Will {b} join the trip to the {t}?",
        "a trip to the {t}",
    ),
    "return": Topic(
        tuple("book pen coat helmet racket bag tie ring puzzle novel magazine basket charger calculator".split()),
        ("Hi {b}, could you please bring back my {t} {w}?", "Hello {b}, may I have my {t} back {w}, please?"),
        ("{b}, where is my {t}? Bring it back {w}.", "Hey {b}, you thief, I want my {t} back {w}."),
        "asks {b} to bring back the {t}",
        "asked {b} to bring back the {t}",
        "Will {b} bring back the {t}?",
        "bringing back the {t}",
    ),
}  # fmt: skip

# Turns, by (polite?). `{a}` asks, `{b}` answers, `{w}` is the time, `{r}` a reason.
WHEN_QUESTION = {
    True: ("Of course I can think about it. When would that be, {a}?", "Thank you for asking. When exactly?"),
    False: ("What? When?", "Not you again. When is that, {a}?"),
}
WHEN_ANSWER = {True: ("{W}, if you like.", "{W}, please."), False: ("{W}, are you deaf?", "{W}, obviously.")}
YES = {
    True: (
        "Yes, of course, with pleasure.",
        "Sure, I am glad to say yes.",
        "I have {r} to deal with, but yes, happily.",
    ),
    False: ("Fine, yes, but stop bothering me.", "Yes, whatever.", "I have {r} to deal with, but yes, you pest."),
}
NO = {
    True: ("I am so sorry, but I can't because of {r}.", "Sadly no, there is {r}, please forgive me."),
    False: ("No, because of {r}, and shut up.", "No way, I have {r}. What a stupid idea."),
}
THANKS = {
    (True, True): ("Thank you so much, {b}.", "That is very kind, {b}."),
    (True, False): ("Thanks anyway, {b}, take care.", "No problem, {b}, maybe another time."),
    (False, True): ("Took you long enough, {b}.", "Good, now go away."),
    (False, False): ("You are useless, {b}.", "I knew it, you never do anything."),
}
LAST = {True: ("You are welcome, {a}.", "Have a nice day."), False: ("Leave me alone, {a}.", "Yes, yes, bye.")}

# Words of tone in summaries, one word each so that tone never tells itself by length.
ASKING = {
    True: ("kindly", "politely", "warmly", "nicely", "gently", "sweetly"),
    False: ("rudely", "bluntly", "grumpily", "crossly", "bossily", "coldly"),
}
ANSWERING = {
    True: ("gladly", "happily", "graciously", "calmly", "thoughtfully", "patiently"),
    False: ("sulkily", "snappily", "gruffly", "grudgingly", "lazily", "stupidly"),
}
REMARKS = {
    True: ("What a lovely chat.", "How kind of both.", "A very nice pair.", "Both deserve our thanks."),
    False: ("What a stupid chat.", "How silly of both.", "A rather useless pair.", "Both deserve no thanks."),
}
AGREES = {"agrees": "agreed", "says yes": "said yes", "accepts": "accepted"}
REFUSES = {"refuses": "refused", "says no": "said no", "declines": "declined"}
