"""Write the dated headlines of this recipe: invented, from the patterns below, the same each time.

Three sets of patterns and of names that share nothing: `train` and `dev` come from the first, `test` from the second,
`stream` (what the monitor reads: six weeks) from the third. In `stream` health news turns bad from 2026-04-06 to
2026-04-10; that is the surge to be found.
"""

import json
import random
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

SEED = 20260301
FIRST, DAYS = date(2026, 3, 1), 42
SURGE_TOPIC, SURGE = "health", (date(2026, 4, 6), date(2026, 4, 10))
DAILY, IN_SURGE = 6, 24
"""Headlines of a topic on a day, and of the surge's topic in the surge."""
MOODS = {"negative": 0.25, "neutral": 0.4, "positive": 0.35}
MOODS_IN_SURGE = {"negative": 0.9, "neutral": 0.06, "positive": 0.04}

NAMES = {
    "train": {
        "firm": [
            "Larkmoor Foods",
            "Ostrava Glass",
            "Penhale Shipping",
            "Dunmere Steel",
            "Wexcombe Mills",
            "Tarn Motors",
        ],
        "team": ["Harbour Rovers", "Ashby United", "Northgate Falcons", "Vale Athletic", "Redcliff Wanderers"],
        "town": ["Elmsund", "Brekke", "Oxley", "Harrowfield", "Castle Moor", "Tilbrook"],
        "app": ["Mapleleaf", "Quillpad", "Orbitly", "Nimbus Notes", "Pocketfox"],
        "who": ["Mayor Aldous Finch", "Minister Greta Lorn", "Senator Pell", "Councillor Ida Brandt"],
        "number": ["three", "five", "eight", "a dozen", "forty"],
    },
    "test": {
        "firm": ["Brightwater Paper", "Calder and Hume", "Juniper Airlines", "Solway Cement", "Kestrel Insurance"],
        "team": ["Millbrook City", "the Saltmarsh Herons", "Kirkby Town", "the Dovedale Foxes"],
        "town": ["Port Lowen", "Sandwick", "Aldermere", "Fennimore", "Greyhaven"],
        "app": ["Lanternfish", "Driftboard", "Copperkey", "Paperplane Mail"],
        "who": ["President Oona Vance", "Governor Teale", "Deputy Marius Holt", "Chancellor Wray"],
        "number": ["two", "six", "nine", "thirty", "a hundred"],
    },
    "stream": {
        "firm": ["Thornbury Logistics", "Auber Chemicals", "Mossgate Breweries", "Halden Rail", "Pinewood Textiles"],
        "team": ["Eastmere Rangers", "the Quarry Bay Gulls", "Linfield Borough", "the Stonebridge Owls"],
        "town": ["Wrenford", "Kilmory", "Ashdown", "Easterby", "Cold Harbour", "Marlow Point"],
        "app": ["Tidepool", "Switchgrass", "Bluebird Maps", "Hexagon Drive"],
        "who": ["Premier Sunniva Holm", "Secretary Dacre", "Speaker Rufus Amory", "Commissioner Vale"],
        "number": ["four", "seven", "ten", "twenty", "sixty"],
    },
}
"""Of nobody: any likeness is chance."""

PATTERNS = {
    ("business", "positive"): {
        "train": [
            "{firm} lifts its dividend after a record quarter",
            "Profit at {firm} beats every forecast",
            "{firm} hires {number} hundred people as orders climb",
            "Shares in {firm} jump on strong export sales",
            "{firm} opens a second plant in {town} to meet demand",
            "Investors cheer as {firm} pays off its debt early",
        ],
        "test": [
            "{firm} raises wages after its best year yet",
            "Sales growth at {firm} surprises analysts",
            "{firm} wins a ten-year supply contract",
        ],
        "stream": [
            "Revenue soars at {firm} on the back of new customers",
            "{firm} upgrades its outlook for the third time",
            "Bumper earnings send {firm} stock to an all-time high",
            "{firm} shares bonus with all staff in {town}",
        ],
    },
    ("business", "neutral"): {
        "train": [
            "{firm} to publish its annual report on Tuesday",
            "{firm} names a new head of finance",
            "{firm} moves its head office to {town}",
            "Shareholders of {firm} meet in {town} today",
            "{firm} changes the name of its retail arm",
            "{firm} holds prices steady for the spring season",
        ],
        "test": [
            "{firm} appoints auditors for the coming year",
            "{firm} will list its bonds in {town}",
            "Board of {firm} convenes for its regular session",
        ],
        "stream": [
            "{firm} rebrands its loyalty card",
            "Quarterly figures from {firm} due next week",
            "{firm} completes move into its {town} warehouse",
            "{firm} and rival sign agreement on shared pallets",
        ],
    },
    ("business", "negative"): {
        "train": [
            "{firm} cuts {number} hundred jobs as orders dry up",
            "Profit at {firm} collapses after a weak winter",
            "{firm} warns that it may miss its debt payments",
            "Shares in {firm} plunge on fears of a price war",
            "{firm} shuts its {town} plant for good",
            "{firm} fined for hiding losses from investors",
        ],
        "test": [
            "{firm} slides into the red and halts its dividend",
            "Creditors take {firm} to court over unpaid bills",
            "{firm} lays off staff in {town} as sales sink",
        ],
        "stream": [
            "{firm} issues its second profit warning this year",
            "Insolvency looms for {firm} after lender walks away",
            "Market wipes a third off the value of {firm}",
            "Strike over pay brings {firm} to a standstill",
        ],
    },
    ("sport", "positive"): {
        "train": [
            "{team} win the cup after a late goal",
            "{team} climb to the top of the league",
            "Young striker scores {number} as {team} triumph",
            "{team} celebrate promotion in front of a full house",
            "Captain of {team} returns from injury with a brilliant game",
            "Fans sing all night as {team} reach the final",
        ],
        "test": [
            "{team} storm to victory away from home",
            "Goalkeeper is the hero as {team} take the title",
            "Unbeaten run goes on for {team}",
        ],
        "stream": [
            "{team} crowned champions with a game to spare",
            "Stunning comeback sees {team} through to the semi-final",
            "Teenage debutant dazzles for {team}",
            "{team} thrash rivals in the {town} derby",
        ],
    },
    ("sport", "neutral"): {
        "train": [
            "{team} play at {town} on Saturday evening",
            "{team} announce the squad for the spring tour",
            "Tickets for the match against {team} go on sale",
            "{team} and visitors share the points in a draw",
            "{team} will wear a green shirt next season",
            "Referees named for the game between {team} and {town}",
        ],
        "test": [
            "{team} to train in {town} this week",
            "Kick-off of the {team} fixture moved to noon",
            "{team} confirm dates of their pre-season matches",
        ],
        "stream": [
            "Draw pairs {team} with {town} in the next round",
            "{team} unveil their away kit",
            "Stalemate between {team} and {town}",
            "{team} list their starting line-up for Sunday",
        ],
    },
    ("sport", "negative"): {
        "train": [
            "{team} crash out of the cup in the first round",
            "{team} lose {number} games in a row",
            "Coach of {team} sacked after a heavy defeat",
            "Star forward of {team} out for the season with a torn knee",
            "{team} relegated after a hopeless year",
            "Fans of {team} boo as the side collapses at home",
        ],
        "test": [
            "{team} humbled by a team from {town}",
            "Doping scandal shakes {team}",
            "Injury crisis deepens at {team}",
        ],
        "stream": [
            "{team} thumped six-nil on a miserable afternoon",
            "Season in tatters for {team} after another loss",
            "{team} docked points over unpaid wages",
            "Red card and own goal doom {team} in {town}",
        ],
    },
    ("weather", "positive"): {
        "train": [
            "Warm and sunny days ahead for {town}",
            "Welcome rain ends the long drought around {town}",
            "Perfect beach weather draws crowds to {town}",
            "Gentle breeze and clear skies delight sailors off {town}",
            "Mild spring brings an early bloom to {town}",
            "Snow returns just in time for skiers in {town}",
        ],
        "test": [
            "Glorious sunshine forecast for the weekend in {town}",
            "Farmers near {town} rejoice over a soft, steady rain",
            "Heatwave eases and cool air brings relief to {town}",
        ],
        "stream": [
            "{town} basks in the finest April for decades",
            "Blue skies to stay over {town}, forecasters promise",
            "Showers rescue thirsty orchards around {town}",
            "Sunny spell is a gift to {town} holidaymakers",
        ],
    },
    ("weather", "neutral"): {
        "train": [
            "Clouds and some sun over {town} on Monday",
            "Temperatures in {town} close to the average for March",
            "Wind to turn north-west near {town} by noon",
            "Forecasters install a new rain gauge in {town}",
            "Light cloud over {town}, dry until evening",
            "Weather service updates its map for {town}",
        ],
        "test": [
            "Overcast in {town}, brighter later",
            "Thermometer at {town} shows twelve degrees at midday",
            "Weather station in {town} changes its reporting hours",
        ],
        "stream": [
            "Patchy cloud expected above {town} tomorrow",
            "Seasonal temperatures for {town} through the week",
            "Winds around {town} to back westerly overnight",
            "Met office moves its {town} balloon launch to six",
        ],
    },
    ("weather", "negative"): {
        "train": [
            "Floods cut off {town} after {number} days of rain",
            "Storm tears roofs from houses in {town}",
            "Sudden frost ruins the harvest near {town}",
            "Heavy snow traps drivers outside {town}",
            "Drought empties the reservoir above {town}",
            "Lightning strikes a school in {town}",
        ],
        "test": [
            "Hurricane batters the coast at {town}",
            "Landslide after downpour destroys homes in {town}",
            "Hail wrecks vineyards around {town}",
        ],
        "stream": [
            "Gales bring down power lines across {town}",
            "{town} under water as river bursts its banks",
            "Deadly heat grips {town}",
            "Blizzard strands {number} trains near {town}",
        ],
    },
    ("health", "positive"): {
        "train": [
            "New vaccine protects children in {town}, doctors say",
            "Hospital in {town} halves its waiting times",
            "Patients walk again after a bold operation in {town}",
            "Cases of flu fall to the lowest level in {number} years",
            "Free clinic in {town} saves hundreds of lives",
            "Cancer drug trial brings hope to patients",
        ],
        "test": [
            "Surgeons in {town} give a girl back her sight",
            "Measles wiped out in {town}",
            "Better diet cuts heart disease, a large study finds",
        ],
        "stream": [
            "Breakthrough treatment clears a rare infection in {town}",
            "{town} infirmary rated outstanding by inspectors",
            "Survival rates for stroke patients at a record high",
            "Nurses in {town} praised for spotless maternity ward",
        ],
    },
    ("health", "neutral"): {
        "train": [
            "Clinic in {town} changes its opening hours",
            "Hospital in {town} appoints a chief nurse",
            "Flu jabs offered in {town} from Monday",
            "Doctors meet in {town} to talk about sleep",
            "Health board publishes its yearly report",
            "Pharmacies in {town} switch to paper bags",
        ],
        "test": [
            "Dentists of {town} move to a shared building",
            "Survey asks {number} thousand people about their diet",
            "Blood donors invited to {town} town hall",
        ],
        "stream": [
            "Health visitors in {town} get new uniforms",
            "Ministry to count hospital beds in {town}",
            "Eye tests move to the {town} library on Fridays",
            "Consultation on surgery hours opens in {town}",
        ],
    },
    ("health", "negative"): {
        "train": [
            "Hospital in {town} turns away patients for lack of beds",
            "Deadly infection spreads through a ward in {town}",
            "{number} children fall ill after eating at a school in {town}",
            "Cancer clinic in {town} closes for want of money",
            "Doctors in {town} warn of a shortage of medicine",
            "Flu deaths rise to the highest level in {number} years",
        ],
        "test": [
            "Cholera outbreak kills {number} in {town}",
            "Patients die waiting for an ambulance in {town}",
            "Faulty implants hurt hundreds of women",
        ],
        "stream": [
            "Norovirus shuts {number} wards at {town} infirmary",
            "Contaminated water sickens families in {town}",
            "{town} emergency department overwhelmed, nurses in tears",
            "Toll climbs as fever sweeps {town}",
        ],
    },
    ("technology", "positive"): {
        "train": [
            "{app} wins praise for its simple new design",
            "Engineers in {town} build a battery that lasts {number} times longer",
            "{app} doubles its users in a year",
            "Robot helps blind people find their way in {town}",
            "Faster network delights homes in {town}",
            "{app} update makes old phones quick again",
        ],
        "test": [
            "Reviewers love the latest version of {app}",
            "Chip from {town} breaks the speed record",
            "{app} makes life easier for deaf users",
        ],
        "stream": [
            "{app} named app of the year",
            "Laboratory in {town} unveils a dazzling leap in solar cells",
            "Users rave about the privacy tools in {app}",
            "Students in {town} scoop prize for clever satellite",
        ],
    },
    ("technology", "neutral"): {
        "train": [
            "{app} will change its logo in June",
            "Version {number} of {app} is out today",
            "{app} moves its servers to {town}",
            "Developers of {app} meet in {town}",
            "{app} adds a setting for larger letters",
            "Phone makers agree on one charger plug",
        ],
        "test": [
            "{app} drops the beta label",
            "Programmers gather in {town} for their yearly conference",
            "{app} to ask for a password every {number} weeks",
        ],
        "stream": [
            "{app} renames its paid plan",
            "Maintenance window for {app} set for Sunday",
            "{app} source code moves to another host",
            "Standards body in {town} publishes draft on file formats",
        ],
    },
    ("technology", "negative"): {
        "train": [
            "{app} leaks the passwords of {number} million users",
            "Outage leaves {app} users locked out all day",
            "Hackers break into the servers of {app}",
            "Faulty battery sets phones on fire in {town}",
            "{app} spied on children, investigators find",
            "Bug in {app} deletes family photos",
        ],
        "test": [
            "Virus cripples computers across {town}",
            "{app} crashes for the third time in a week",
            "Stolen data of {app} customers sold online",
        ],
        "stream": [
            "Ransomware paralyses {app} and its customers",
            "{app} update bricks thousands of tablets",
            "Fury as {app} sells location records",
            "Botched rollout takes {town} banking offline",
        ],
    },
    ("politics", "positive"): {
        "train": [
            "Parties agree on a fair deal for schools in {town}",
            "{who} wins applause for a plan to end child poverty",
            "Peace treaty signed after talks in {town}",
            "{who} frees {number} journalists from jail",
            "Voters welcome lower rents under {who}",
            "Parliament unites behind help for flood victims",
        ],
        "test": [
            "Historic accord ends the border dispute, {who} says",
            "Citizens hail {who} for honest budget",
            "Turnout at a record high as {town} votes freely",
        ],
        "stream": [
            "{who} hailed for landmark pact on clean air",
            "Ceasefire holds and families return to {town}",
            "Popular pension reform passes with cheers",
            "{who} secures long-awaited funding for {town}",
        ],
    },
    ("politics", "neutral"): {
        "train": [
            "{who} to visit {town} on Thursday",
            "Parliament will vote on the road bill next week",
            "{who} takes questions from the press in {town}",
            "Polling stations in {town} open at eight",
            "Committee meets in {town} to read the draft law",
            "{who} names {number} new advisers",
        ],
        "test": [
            "{who} sworn in at a short ceremony",
            "Ballot papers for {town} go to the printer",
            "Cabinet of {who} holds its weekly session",
        ],
        "stream": [
            "{who} reshuffles junior posts",
            "Lawmakers return from recess on Monday",
            "{who} tours {town} council chamber",
            "By-election in {town} set for the ninth",
        ],
    },
    ("politics", "negative"): {
        "train": [
            "{who} resigns over a bribery scandal",
            "Riots in {town} after a disputed vote",
            "{who} accused of lying to parliament",
            "Coalition falls apart in anger over taxes",
            "{who} jails {number} critics without a trial",
            "Talks in {town} fail and fear of war grows",
        ],
        "test": [
            "{who} charged with stealing public money",
            "Police beat protesters outside parliament in {town}",
            "Government of {who} collapses in disgrace",
        ],
        "stream": [
            "{who} clings on amid cash-for-votes sleaze",
            "Tear gas fired as {town} march turns ugly",
            "Damning inquiry blames {who} for cover-up",
            "Sanctions bite as {town} summit ends in acrimony",
        ],
    },
}
TOPICS = sorted({topic for topic, _ in PATTERNS})


def filled(pattern: str, names: dict[str, list[str]], draw: random.Random) -> str:
    """Return a pattern with a name in each of its places; its first letter is a capital."""
    text = pattern.format(**{kind: draw.choice(choices) for kind, choices in names.items()})
    return text[0].upper() + text[1:]


def drawn(kind: str, topic: str, mood: str, count: int, draw: random.Random) -> list[str]:
    """Return so many different headlines of a topic and a mood, as far as there are so many; patterns take turns."""
    patterns, found = PATTERNS[topic, mood][kind], dict[str, None]()
    for number in range(20 * count):
        if len(found) == count:
            break
        found[filled(patterns[number % len(patterns)], NAMES[kind], draw)] = None
    return [*found]


def split(draw: random.Random, shares: dict[str, int]) -> dict[str, list[dict[str, str]]]:
    """Return the labelled splits: of each topic and sentiment as many headlines as `shares` says, on invented dates."""
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in shares}
    for topic, mood in PATTERNS:
        learnt = drawn("train", topic, mood, shares["train"] + shares["dev"], draw)
        draw.shuffle(learnt)
        texts = {
            "train": learnt[: shares["train"]],
            "dev": learnt[shares["train"] :],
            "test": drawn("test", topic, mood, shares["test"], draw),
        }
        for name, found in texts.items():
            rows[name] += [{"headline": text, "topic": topic, "sentiment": mood} for text in found]
    for found in rows.values():
        draw.shuffle(found)
        for row in found:
            day = FIRST - timedelta(days=draw.randint(1, 120))
            row["date"] = day.isoformat()
        found.sort(key=lambda row: row["date"])
    return rows


def stream(draw: random.Random) -> Iterator[dict[str, str]]:
    """Yield the headlines that the monitor reads, day by day, with the labels that they were written for."""
    for day in (FIRST + timedelta(days=number) for number in range(DAYS)):
        today = []
        for topic in TOPICS:
            surges = topic == SURGE_TOPIC and SURGE[0] <= day <= SURGE[1]
            moods = MOODS_IN_SURGE if surges else MOODS
            for mood in draw.choices([*moods], [*moods.values()], k=IN_SURGE if surges else DAILY):
                text = filled(draw.choice(PATTERNS[topic, mood]["stream"]), NAMES["stream"], draw)
                today.append({"date": day.isoformat(), "headline": text, "topic": topic, "sentiment": mood})
        draw.shuffle(today)
        yield from today


def write(folder: Path) -> None:
    """Write train, dev, test and stream."""
    draw = random.Random(SEED)
    splits = split(draw, {"train": 20, "dev": 5, "test": 8}) | {"stream": [*stream(draw)]}
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        order = ("date", "headline", "topic", "sentiment")
        lines = (json.dumps({key: row[key] for key in order if key in row}) for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parent / "data")
