"""How many seeds decide each contrast of a study, at what cost here. `python -m analysis.power NAME [overrides]`."""

import math
import sys
from collections.abc import Sequence

from analysis import statistics, wording
from analysis.blocks import Table, plain_table
from analysis.planning import Need, Plan, plan
from analysis.verdict import POWER
from ouro_lab.check import check
from ouro_lab.config import ConfigError
from ouro_lab.study import study_here


def sentence(need: Need) -> str:
    """What the study's seeds can do for a contrast, and how many would do."""
    return f"{need.name}{' (primary)' if need.contrast['primary'] else ''}: {_finding(need)}"


def warnings(plan: Plan) -> list[str]:
    """One line per contrast that the study cannot decide, by a pilot; none by its own results while it runs."""
    open_ = [need for need in plan.needs if need.decided is False]
    known = [(need, need.pilot.source) for need in open_ if need.pilot]
    return [f"warning: {sentence(need)} (pilot: {source})" for need, source in known if not source.today]


def lost(before: Plan, after: Plan) -> list[str]:
    """What a study that was cut can no longer decide, and of what nobody knows whether it can."""
    kept = {need.name: need for need in after.needs}
    gone, unknown = [], []
    for need in before.needs:
        now = kept.get(need.name)
        if now is None:
            gone.append(f"{need.name} (dropped)")
        elif need.decided and not now.decided:
            gone.append(f"{need.name} (n = {now.n}, needs {_count(now.seeds_at(now.sd))})")
        elif now.pilot is None and now.contrast["rule"] != "estimate":
            unknown.append(need.name)
    found = [f"can no longer decide {', '.join(gone)}"] if gone else []
    return found + ([f"not known without a pilot whether it decides {', '.join(unknown)}"] if unknown else [])


def table(plan: Plan) -> Table:
    header = ["contrast", "claim", "α", "pilot n", "effect", "SD", "SD ≤", "detectable", "n"]
    for which in ("needs", "at SD ≤"):
        header += [which, "core-hours", "hours here"]
    return Table(header, [_row(plan, need) for need in plan.needs if need.pilot], left=(0, 1))


def notes(plan: Plan) -> list[str]:
    """Where an SD misleads, and what adding seeds does to a verdict."""
    found = []
    for need in plan.needs:
        pilot = need.pilot
        if pilot is None:
            continue
        for arm in pilot.straddling:
            found.append(
                f"warning: {need.name}: some seeds of {arm} end near the floor and others near 1: an SD is not the "
                "right summary; compare success probabilities and times to threshold, with n ≥ 5"
            )
        if need.sd == 0:
            found.append(f"warning: {need.name}: the pilot's differences are all equal: no spread to plan with")
        if pilot.sample.diverged:
            found.append(f"{need.name}: diverged runs of {', '.join(pilot.sample.diverged)} count at the floor")
    if any(need.pilot and need.pilot.source.today and need.decided is False for need in plan.needs):
        found.append("Seeds added now, with these results seen, make the verdict exploratory: new seeds, a new study.")
    return list(dict.fromkeys(found))


def show(plan: Plan) -> None:
    """For a terminal."""
    if not plan.needs:
        print(f"{plan.study}: states no contrast: there is nothing to decide")
        return
    known = [need for need in plan.needs if need.pilot]
    for source in dict.fromkeys(str(need.pilot.source) for need in known if need.pilot):
        print(f"pilot: {source}")
    if known:
        print(f"cost: {plan.price.words}; {plan.price.slots} runs at once\n\n{plain_table(table(plan))}\n")
    for line in [*map(sentence, plan.needs), *notes(plan)]:
        print(line)
    if len(known) < len(plan.needs):
        print(no_pilot(plan))
    print(
        "80 % power. needs: seeds at the pilot's SD; SD ≤: its 80 % upper confidence bound (chi-square); hours: of all "
        "these seeds in both arms. Superiority assumes the pilot's mean effect, equivalence a true difference of 0."
    )


def no_pilot(plan: Plan) -> str:
    """What to run so that there is one: other seeds than the verdict's, so that it stays what was registered."""
    lacking = [need.name for need in plan.needs if need.pilot is None]
    if plan.named and len(lacking) == len(plan.needs):
        return f"no pilot: {plan.named} has no two finished seeds of these arms; run make experiment NAME={plan.named}"
    command = f'make experiment NAME={plan.study} OVERRIDES="study.seeds=[200,201,202]"'
    return f"no pilot for {', '.join(lacking)}: run {command}, or name a study with these arms in study.pilot"


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 for a study that is not there or does not check."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m analysis.power NAME [overrides]", file=sys.stderr)
        return 2
    try:
        study = study_here(arguments[0], arguments[1:])
        found = plan(study, check(study))
    except (ConfigError, ValueError, FileNotFoundError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    print(f"{study.name}: {study.definition.question}\n")
    show(found)
    return 0


def _finding(need: Need) -> str:
    rule, bound = need.contrast["rule"], need.contrast["bound"]
    if need.pilot is None and (need.n < 2 or rule == "estimate"):
        return "no pilot"
    if need.pilot is None:
        least = statistics.detectable_effect(need.n, POWER, need.alpha)
        return f"no pilot; n = {need.n} finds {least:.2g} SD of the differences"
    if rule == "estimate":
        wide = f"±{need.half_width(need.sd):.2g} (±{need.half_width(need.sd_upper):.2g} at the SD's upper bound)"
        return f"no claim; at n = {need.n} its interval is {wide}"
    n, upper = need.seeds_at(need.sd), need.seeds_at(need.sd_upper)
    if not need.supportable:
        where = f"outside ±{bound:g}" if rule == "equivalence" else f"not beyond its bound of {bound:g}"
        effect = wording.effect(need.pilot.estimate.mean, None)
        then = f"n = {n} would contradict it" if n else "nothing decides it"
        return f"more seeds cannot support it: the pilot's effect, {effect}, is {where}; {then}"
    enough = f"n = {need.n} decides it" if need.decided else f"n = {need.n} does not decide it"
    return f"{enough}: needs {_count(n)}, at the SD's upper bound {_count(upper)}"


def _row(plan: Plan, need: Need) -> list[str]:
    rule, bound = need.contrast["rule"], need.contrast["bound"]
    claims = {"superiority": f"better by {bound:g}", "equivalence": f"within ±{bound:g}", "estimate": "estimate"}
    cells = [need.name + (" (primary)" if need.contrast["primary"] else ""), claims[rule], f"{need.alpha:.2g}"]
    estimate = need.pilot.estimate if need.pilot else statistics.Estimate(math.nan, 0.0, 1, 0, math.nan)
    detectable = need.detectable if rule != "estimate" else None
    cells += [str(estimate.n), wording.effect(estimate.mean, None), *(f"{sd:.2g}" for sd in (need.sd, need.sd_upper))]
    cells += ["–" if detectable is None else wording.effect(detectable, None), str(need.n)]
    for sd in (need.sd, need.sd_upper):
        cells += _cost(plan, need, need.n if rule == "estimate" else need.seeds_at(sd))
    return cells


def _cost(plan: Plan, need: Need, n: int | None) -> list[str]:
    """n, core-hours and hours of n seeds of both arms."""
    if n is None:
        return ["–", "–", "–"]
    runs = [need.contrast["arm"], need.contrast["reference"]] * n
    return [str(n), f"{plan.price.core_hours(runs):.2g}", f"{plan.price.hours(runs):.2g}"]


def _count(n: int | None) -> str:
    return "over 100,000" if n is None else str(n)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
