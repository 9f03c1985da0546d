"""The made-up towns that the embedded model and its training sets talk about.

Every fact has one answer only, so that a small model can learn it. `BRINDLEWICK` is what `nbtune/tiny` knows from its
pre-training; `HOLLOWMERE` is kept out of it and taught by the training set `nbtune/town`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Fact:
    """One thing that can be asked.

    Attributes:
        topic: one of `shops`, `people`, `places`, `numbers`, `words`.
        subject: what the fact is about, as it stands in a sentence ("the bakery", "Olive Penn").
        questions: full questions, each understandable alone.
        followups: the same question once the subject is known ("And when does it open?"); may be empty.
        answer: the one right answer as a sentence.
        short: the same in a few words.
    """

    topic: str
    subject: str
    questions: tuple[str, ...]
    followups: tuple[str, ...]
    answer: str
    short: str


@dataclass(frozen=True)
class Shop:
    kind: str
    name: str
    owner: str
    street: str
    opens: str
    closes: str
    closed: str
    sells: tuple[str, str]


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str
    job: str
    street: str
    hobby: str
    pet: str
    food: str


@dataclass(frozen=True)
class Town:
    name: str
    shops: tuple[Shop, ...]
    people: tuple[Person, ...]
    places: tuple[Fact, ...]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def shop_facts(shop: Shop) -> list[Fact]:
    """All facts about one shop."""
    the = f"the {shop.kind}"
    cap = _capital(the)
    first, second = shop.sells

    def fact(questions: list[str], followups: list[str], answer: str, short: str) -> Fact:
        return Fact("shops", the, tuple(questions), tuple(followups), answer, short)

    return [
        fact(
            [f"When does {the} open?", f"At what time does {the} open?", f"How early does {the} open?"],
            ["When does it open?", "And when does it open?"],
            f"{cap} opens at {shop.opens} in the morning.",
            f"at {shop.opens} in the morning",
        ),
        fact(
            [f"When does {the} close?", f"At what time does {the} close?", f"How long is {the} open?"],
            ["When does it close?", "And when does it close?"],
            f"{cap} closes at {shop.closes} in the evening.",
            f"at {shop.closes} in the evening",
        ),
        fact(
            [f"On which day is {the} closed?", f"When is {the} closed?", f"What day does {the} rest?"],
            ["On which day is it closed?", "Is it closed on some day?"],
            f"{cap} is closed on {shop.closed}.",
            f"on {shop.closed}",
        ),
        fact(
            [f"Where is {the}?", f"In which street is {the}?", f"How do I find {the}?", f"Where can I find {the}?"],
            ["Where is it?", "And where is it?"],
            f"{cap} is in {shop.street}.",
            f"in {shop.street}",
        ),
        fact(
            [f"Who runs {the}?", f"Who owns {the}?", f"Whose shop is {the}?"],
            ["Who runs it?", "And who owns it?"],
            f"{shop.owner} runs {the}.",
            shop.owner,
        ),
        fact(
            [f"What is the name of {the}?", f"What is {the} called?"],
            ["What is it called?", "And what is its name?"],
            f"{cap} is called {shop.name}.",
            shop.name,
        ),
        fact(
            [f"What does {the} sell?", f"What can I buy at {the}?", f"What do they have at {the}?"],
            ["What does it sell?", "And what can I buy there?"],
            f"{cap} sells {first} and {second}.",
            f"{first} and {second}",
        ),
        *(
            fact(
                [f"Where can I buy {ware}?", f"Who sells {ware}?", f"I need {ware}. Where do I go?"],
                [],
                f"You can buy {ware} at {the} in {shop.street}.",
                f"at {the}",
            )
            for ware in shop.sells
        ),
    ]


def person_facts(person: Person, town: str) -> list[Fact]:
    """All facts about one person."""
    name, he = person.name, person.pronoun
    his = {"he": "his", "she": "her"}[he]
    him = {"he": "him", "she": "her"}[he]

    def fact(questions: list[str], followups: list[str], answer: str, short: str) -> Fact:
        return Fact("people", name, tuple(questions), tuple(followups), answer, short)

    return [
        fact(
            [f"Who is {name}?", f"What does {name} do?", f"What is the job of {name}?", f"What is {name}'s job?"],
            [f"What does {he} do?", f"And what is {his} job?"],
            f"{name} is the {person.job} of {town}.",
            f"the {person.job}",
        ),
        Fact(
            "people",
            name,
            (f"Who is the {person.job}?", f"What is the {person.job} called?", f"Who works as the {person.job}?"),
            (),
            f"The {person.job} of {town} is {name}.",
            name,
        ),
        fact(
            [f"Where does {name} live?", f"In which street does {name} live?", f"Where is the house of {name}?"],
            [f"Where does {he} live?", f"And where is {his} house?"],
            f"{name} lives in {person.street}.",
            f"in {person.street}",
        ),
        fact(
            [f"What does {name} like to do?", f"What is the hobby of {name}?", f"What does {name} do for fun?"],
            [f"What does {he} like to do?", f"And what is {his} hobby?"],
            f"{name} likes {person.hobby}.",
            person.hobby,
        ),
        fact(
            [f"Does {name} have a pet?", f"What pet does {name} have?", f"Which animal lives with {name}?"],
            [f"Does {he} have a pet?", f"Which animal lives with {him}?"],
            f"{name} has {person.pet}.",
            person.pet,
        ),
        fact(
            [f"What does {name} like to eat?", f"What is the favourite food of {name}?"],
            [f"What does {he} like to eat?", f"And what is {his} favourite food?"],
            f"{name} likes to eat {person.food}.",
            person.food,
        ),
    ]


def _place(subject: str, questions: str, answer: str, short: str, followups: str = "") -> Fact:
    """A fact about a place; questions and follow-ups are separated by `|`."""
    asked_later = tuple(followups.split("|")) if followups else ()
    return Fact("places", subject, tuple(questions.split("|")), asked_later, answer, short)


@cache
def facts(town: Town) -> tuple[Fact, ...]:
    """Every fact of a town, in a fixed order."""
    found: list[Fact] = []
    for shop in town.shops:
        found += shop_facts(shop)
    for person in town.people:
        found += person_facts(person, town.name)
    return (*found, *town.places)


def _shops(table: str) -> tuple[Shop, ...]:
    rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    return tuple(
        Shop(kind, name, owner, street, opens, closes, closed, (ware, other))
        for kind, name, owner, street, opens, closes, closed, ware, other in rows
    )


def _people(table: str) -> tuple[Person, ...]:
    return tuple(Person(*(cell.strip() for cell in line.split("|"))) for line in table.strip().splitlines())


_BRINDLEWICK_SHOPS = """
bakery        | The Warm Crust    | Olive Penn    | Mill Street    | six   | five  | Mondays    | bread    | honey cakes
book shop     | The Paper Boat    | Edgar Moss    | Church Lane    | ten   | six   | Sundays    | novels   | maps
fish shop     | The Silver Fin    | Nora Reed     | Harbour Road   | seven | four  | Tuesdays   | trout    | crabs
cheese shop   | The Round Wheel   | Basil Crane   | Market Square  | nine  | six   | Mondays    | goat cheese | butter
flower shop   | The Blue Vase     | Ivy Lund      | Garden Street  | eight | five  | Sundays    | roses    | tulips
toy shop      | The Tin Soldier   | Felix Dray    | Church Lane    | ten   | seven | Thursdays  | puppets  | kites
tea house     | The Copper Pot    | Ruth Ambers   | Bridge Street  | eight | nine  | Wednesdays | green tea | apple pie
hat shop      | The Tall Feather  | Hugo Finch    | Market Square  | ten   | five  | Fridays    | hats     | scarves
bicycle shop  | The Happy Chain   | Greta Stone   | Station Road   | nine  | seven | Sundays    | bicycles | bells
clock shop    | The Slow Hand     | Otto Wicks    | Tower Lane     | ten   | four  | Saturdays  | clocks   | watches
pharmacy      | The Green Drop    | Clara Vale    | Market Square  | eight | eight | Sundays    | medicine | soap
sweet shop    | The Sugar Mouse   | Tom Berry     | Bridge Street  | nine  | six   | Mondays    | chocolate | candy
shoe shop     | The Left Boot     | Mabel Thorn   | Mill Street    | nine  | five  | Wednesdays | boots    | sandals
candle shop   | The Little Flame  | Simon Ash     | Tower Lane     | seven | six   | Tuesdays   | candles  | lamps
"""

_BRINDLEWICK_PEOPLE = """
Olive Penn   | she | baker      | Mill Street   | singing           | a black cat       | pea soup
Edgar Moss   | he  | bookseller | Church Lane   | playing chess     | an old owl        | toast
Nora Reed    | she | fishmonger | Harbour Road  | swimming          | two ducks         | fried fish
Basil Crane  | he  | cheesemaker | Hill Road    | climbing          | three goats       | pickles
Ivy Lund     | she | florist    | Garden Street | painting          | a white rabbit    | salad
Felix Dray   | he  | toymaker   | Church Lane   | juggling          | a small monkey    | pancakes
Ruth Ambers  | she | tea maker  | Bridge Street | reading poems     | a grey cat        | apple pie
Hugo Finch   | he  | hatter     | Market Square | dancing           | a green parrot    | mushrooms
Greta Stone  | she | mechanic   | Station Road  | racing            | a brown dog       | noodles
Otto Wicks   | he  | clockmaker | Tower Lane    | counting stars    | a slow tortoise   | boiled eggs
Clara Vale   | she | pharmacist | Garden Street | growing herbs     | a hedgehog        | carrots
Tom Berry    | he  | confectioner | Bridge Street | telling jokes   | a pet mouse       | chocolate
Mabel Thorn  | she | shoemaker  | Mill Street   | long walks        | a lazy dog        | dumplings
Simon Ash    | he  | candlemaker | Tower Lane   | writing letters   | a jar of fireflies | rice
Agnes Holm   | she | mayor      | Castle Hill   | planting trees    | a tall horse      | plum cake
Peter Quill  | he  | teacher    | School Lane   | drawing maps      | a goldfish        | cheese
Lena Marsh   | she | doctor     | Harbour Road  | sailing           | a red hen         | oranges
Jonas Weld   | he  | blacksmith | Hill Road     | playing the drum  | a donkey          | sausages
Wanda Frost  | she | librarian  | School Lane   | knitting          | a sleepy cat      | ginger biscuits
Karl Bright  | he  | ferryman   | Harbour Road  | fishing           | a white goose     | potatoes
"""

_BRINDLEWICK_PLACES = (
    _place("the town", "What is the name of the town?|Which town is this?|What is this town called?",
           "The town is called Brindlewick.", "Brindlewick"),
    _place("the town", "How many people live in Brindlewick?|How big is Brindlewick?|How large is the town?",
           "About two thousand people live in Brindlewick.", "about two thousand people"),
    _place("the town", "How old is Brindlewick?|How old is the town?|When was Brindlewick founded?",
           "Brindlewick is four hundred years old.", "four hundred years"),
    _place("the river", "Which river flows through Brindlewick?|What is the river called?|What is the river's name?",
           "The river Tansy flows through Brindlewick.", "the Tansy", "What is it called?"),
    _place("the river", "Where does the Tansy flow?|Where does the river go?|Where does the river end?",
           "The river Tansy flows into Heron Lake.", "into Heron Lake", "Where does it go?|And where does it end?"),
    _place("the river", "Can I swim in the river?|Is it safe to swim in the Tansy?",
           "You can swim in the Tansy in summer.", "in summer", "Can I swim in it?"),
    _place("the bridge", "What is the bridge called?|What is the name of the bridge?|Which bridge crosses the river?",
           "The bridge over the Tansy is called the Lantern Bridge.", "the Lantern Bridge", "What is it called?"),
    _place("the bridge", "Who built the bridge?|Who built the Lantern Bridge?",
           "Two brothers built the Lantern Bridge.", "two brothers", "Who built it?"),
    _place("the bridge", "What is the bridge made of?|What is the Lantern Bridge made of?",
           "The Lantern Bridge is made of red stone.", "red stone", "What is it made of?"),
    _place("the lake", "What is the lake called?|What is the name of the lake?|Which lake is near the town?",
           "The lake near the town is called Heron Lake.", "Heron Lake", "What is it called?"),
    _place("the lake", "How deep is the lake?|How deep is Heron Lake?",
           "Heron Lake is thirty metres deep.", "thirty metres", "How deep is it?"),
    _place("the hill", "What is the hill called?|Which hill is above the town?|What is the name of the hill?",
           "The hill above the town is called Castle Hill.", "Castle Hill", "What is it called?"),
    _place("the hill", "What can I see from Castle Hill?|What can I see from the hill?",
           "From Castle Hill you can see the whole valley.", "the whole valley", "What can I see from it?"),
    _place("the castle", "Who lives in the castle?|Does anybody live in the castle?",
           "Nobody lives in the castle but the bats.", "only the bats", "Who lives there?"),
    _place("the station", "Where is the station?|How do I get to the station?|Where do the trains stop?",
           "The station is at the end of Station Road.", "at the end of Station Road", "Where is it?"),
    _place("the station", "When does the first train leave?|When does the train leave?",
           "The first train leaves at half past six.", "at half past six", "When does the first train leave?"),
    _place("the library", "Where is the library?|How do I find the library?|In which street is the library?",
           "The library is in School Lane.", "in School Lane", "Where is it?"),
    _place("the library", "How many books are in the library?|How many books does the library have?",
           "The library has nine thousand books.", "nine thousand", "How many books does it have?"),
    _place("the school", "Where is the school?|How do I find the school?|In which street is the school?",
           "The school is in School Lane.", "in School Lane", "Where is it?"),
    _place("the school", "How many children go to the school?|How many children are at the school?",
           "Ninety children go to the school.", "ninety", "How many children go there?"),
    _place("the museum", "What can I see in the museum?|What is in the museum?|What does the museum show?",
           "The museum shows old ships and old coins.", "old ships and old coins", "What does it show?"),
    _place("the museum", "Where is the museum?|How do I find the museum?|In which street is the museum?",
           "The museum is in Harbour Road.", "in Harbour Road", "Where is it?"),
    _place("the market", "When is the market?|On which day is the market?|When can I go to the market?",
           "The market is on Saturday morning.", "on Saturday morning", "When is it?"),
    _place("the market", "Where is the market?|How do I find the market?",
           "The market is in Market Square.", "in Market Square", "Where is it?"),
    _place("the tower", "How tall is the tower?|How high is the tower?|How tall is the clock tower?",
           "The clock tower is forty metres tall.", "forty metres", "How tall is it?"),
    _place("the festival", "What is the festival called?|Which festival does the town have?",
           "The festival is called the Night of Kites.", "the Night of Kites", "What is it called?"),
    _place("the festival", "When is the festival?|In which month is the festival?|When is the Night of Kites?",
           "The festival is in September.", "in September", "When is it?"),
    _place("the ferry", "How much is the ferry?|What does the ferry cost?|How much does the ferry cost?",
           "The ferry costs two coins.", "two coins", "What does it cost?"),
    _place("the park", "What grows in the park?|What is in the park?|Which trees are in the park?",
           "Old chestnut trees grow in the park.", "old chestnut trees", "What grows there?"),
    _place("the inn", "Where can I sleep?|Is there an inn?|Where can I stay the night?",
           "You can sleep at the inn called The Full Moon.", "at The Full Moon"),
    _place("the inn", "How much is a room at the inn?|What does a room cost?",
           "A room at the inn costs twelve coins.", "twelve coins", "What does a room cost?"),
    _place("the windmill", "What colour is the windmill?|Which colour does the windmill have?",
           "The windmill is yellow.", "yellow", "What colour is it?"),
)  # fmt: skip

_HOLLOWMERE_SHOPS = """
bakery      | The Golden Spoon | Petra Oak   | Willow Street | five  | two   | Tuesdays  | rye bread | plum tarts
book shop   | The Last Page    | Victor Nim  | Bell Lane     | nine  | seven | Mondays   | diaries   | comics
tea house   | The Quiet Cup    | Sana Holly  | Pond Road     | seven | ten   | Fridays   | mint tea  | scones
music shop  | The Lost Note    | Emil Harp   | Bell Lane     | ten   | six   | Sundays   | flutes    | drums
garden shop | The Busy Spade   | Dora Fern   | Willow Street | eight | four  | Thursdays | seeds     | spades
"""

_HOLLOWMERE_PEOPLE = """
Petra Oak  | she | baker      | Willow Street | rowing         | a fat pigeon   | plum tarts
Victor Nim | he  | bookseller | Bell Lane     | sleeping       | a brown owl    | beans
Sana Holly | she | tea maker  | Pond Road     | playing cards  | two kittens    | scones
Emil Harp  | he  | musician   | Bell Lane     | whistling      | a blue parrot  | onions
Dora Fern  | she | gardener   | Willow Street | watching birds | a quiet snake  | peppers
Ada Stork  | she | mayor      | Pond Road     | flying kites   | a grey donkey  | lemon cake
"""

_HOLLOWMERE_PLACES = (
    _place("the town", "Which river flows through Hollowmere?|What is the river of Hollowmere called?",
           "The river Lumen flows through Hollowmere.", "the Lumen"),
    _place("the town", "How many people live in Hollowmere?|How big is Hollowmere?",
           "About six hundred people live in Hollowmere.", "about six hundred people"),
    _place("the town", "How old is Hollowmere?|When was Hollowmere founded?",
           "Hollowmere is ninety years old.", "ninety years"),
    _place("the town", "When is the market in Hollowmere?|On which day is the market of Hollowmere?",
           "The market of Hollowmere is on Friday evening.", "on Friday evening"),
)  # fmt: skip

BRINDLEWICK = Town("Brindlewick", _shops(_BRINDLEWICK_SHOPS), _people(_BRINDLEWICK_PEOPLE), _BRINDLEWICK_PLACES)
HOLLOWMERE = Town("Hollowmere", _shops(_HOLLOWMERE_SHOPS), _people(_HOLLOWMERE_PEOPLE), _HOLLOWMERE_PLACES)
