# SPDX-License-Identifier: GPL-2.0-only
"""report.py DIR NAME...: makes report.json, report.md and the tables on stdout from the consoles DIR/NAME.log.

The raw results are lines `@@ {...}` of qemu-test/bench/run.sh.
"""

import itertools
import json
import random
import re
import sys

PAGE = 4096
ORDER = ["raw", "dm-linear", "dm-snapshot-4", "dm-snapshot-64", "dm-thin-64", "presnap"]
NAMES = {
    "dm-snapshot-4": ("dm-snapshot", "4 KiB chunks"),
    "dm-snapshot-64": ("dm-snapshot", "64 KiB chunks"),
    "dm-thin-64": ("dm-thin", "64 KiB blocks"),
}
CLEARLY_BELOW = 0.75
# When T0 is, the length of a window, and the window with which staging begins; the course of a run, see run.sh.
T0_MS, WINDOW_MS, REQUEST = 5250, 750, 2


def read(directory, names):
    """All results, and what went wrong."""
    results, troubles = [], []
    for name in names:
        try:
            with open(f"{directory}/{name}.log", encoding="utf-8", errors="replace") as f:
                lines = f.read().replace("\r", "").split("\n")
        except OSError as e:
            troubles.append(f"{name}: {e}")
            continue
        for line in lines:
            at = line.find("@@ {")
            if at >= 0:
                try:
                    result = json.loads(line[at + 3 :])
                    result["vm"] = name
                    results.append(result)
                except ValueError as e:
                    troubles.append(f"{name}: a result that is none ({e})")
            elif "FAILED" in line:
                troubles.append(f"{name}: {line.strip()}")
            elif re.search(r"\] (BUG:|WARNING:|Oops|Kernel panic|rust_kernel: panicked)", line):
                troubles.append(f"{name}: the kernel: {line.strip()}")
        if not any(line.startswith("### presnap end") for line in lines):
            troubles.append(f"{name}: the VM did not come to its end")
    return results, troubles


def words(text):
    """The key=value words of a text, numbers as numbers."""
    found = re.findall(r"(\w+)[=:](\S+)", text)
    return {k: int(v) if v.isdigit() else v for k, v in found}


def zipf_weights(groups, theta=1.1):
    return [k**-theta for k in range(1, groups + 1)]


def distinct_pages(load, after, span):
    """How many distinct pages the writes of `after` are expected to have overwritten; the load's own rules (loads.rs)."""
    if load == "seq":
        return min(after["ios"] * 16, span // PAGE)
    end = span // 16 * 15 if load == "mixed" else span
    groups = end // PAGE - 3
    weights = zipf_weights(groups)
    total = sum(weights)
    if load == "zipf":
        n = after["ios"]
        return round(sum(1 - (1 - w / total) ** n for w in weights))
    # mixed: 3 of 4 page requests write; the rest of the writes are the log's.
    reads = after.get("reads", {}).get("ios", 0)
    page_writes = min(3 * reads, after.get("writes", {}).get("ios", 0))
    log_writes = after.get("writes", {}).get("ios", 0) - page_writes
    rng = random.Random(1)
    step = next(k for k in range(max(1, int(groups * 0.618)), groups) if gcd(k, groups) == 1)
    seen = set()
    for rank in rng.choices(range(groups), cum_weights=list(itertools.accumulate(weights)), k=page_writes):
        page = rank * step % groups
        seen.update(range(page, page + rng.choice((1, 2, 2, 4))))
    return len(seen) + min(int(log_writes * 1.5), (span - end) // PAGE)


def gcd(a, b):
    while b:
        a, b = b, a % b
    return a


def five(numbers):
    """What the report has of a measurement."""
    return {k: numbers.get(k) for k in ("iops", "mean_us", "p50_us", "p99_us", "max_us")}


def judge(result, span):
    """A run of the report, and details beside it."""
    system, variant, load = result["system"], result["variant"], result["load"]
    options = words(result["options"])
    if "SPAN" in options:
        load = f"{load}-{options['SPAN']}MiB"
    load_result = result["result"]
    windows = load_result["windows"]
    # The second window; where T0 comes earlier (or there is none), the first one.
    t0_ms = options.get("T0_MS", T0_MS)
    before = windows[1] if t0_ms == T0_MS else windows[0]
    after = load_result["after"]
    name, chunk = NAMES.get(system, (system, ""))
    run = {
        "system": name,
        "variant": variant if variant != "-" else chunk,
        "load": load,
        "before": five(before),
        "after": five(after),
        "freeze_us": None,
        "seal_ms": None,
        "bytes_written_per_delta_byte": None,
    }
    detail = {"predictor": result["predictor"], "note": "", "staging_p99_us": None, "staging_iops": None}
    if variant.endswith("model"):
        # From the request to T0, the worst of the windows.
        staging = windows[REQUEST : T0_MS // WINDOW_MS] if t0_ms == T0_MS else windows[1:2]
        detail["staging_p99_us"] = max(w["p99_us"] for w in staging)
        detail["staging_iops"] = min(w["iops"] for w in staging)
    held = words(result["held"] + " " + load_result.get("command", {}).get("stdout", ""))
    if "held" in held:
        run["freeze_us"] = held["held"]
    written = result["store_bytes"] + result["meta_bytes"]
    if system == "presnap":
        state = words(result["state"])
        stats = words(result["status"])
        detail.update(state)
        words_ = result["state"].split()
        detail["state"] = words_[1] if len(words_) > 1 else "?"
        if "freeze_us" in state:
            run["freeze_us"] = state["freeze_us"]
            delta = state["delta_blocks"]
            ends = state["staged_valid_blocks"] + state["final_copy_blocks"] + state["drained_blocks"]
            guarded_in_delta = max(0, delta - ends)
            staged_for_this = state["copied_blocks_total"] - (
                state["final_copy_blocks"] + state["guarded_blocks"] + state["drained_blocks"]
            )
            staged_for_next = max(0, stats.get("precopied_blocks", 0) - staged_for_this)
            preserved = delta
            if variant.startswith("image"):
                preserved += max(0, stats.get("guarded_blocks", 0) - guarded_in_delta)
            detail["staged_for_this"] = staged_for_this
            detail["staged_for_next"] = staged_for_next
            if preserved and not detail["state"].startswith("dropped"):
                run["bytes_written_per_delta_byte"] = round((written / PAGE - staged_for_next) / preserved, 3)
        if detail["state"] == "sealed":
            run["seal_ms"] = round(state["seal_us"] / 1000, 1)
        else:
            detail["note"] = f"the snapshot was not sealed: {result['state'].split(' scope')[0]}"
    elif system == "dm-snapshot-4":
        found = re.search(r"snapshot (\d+)/\d+ (\d+)", result["status"])
        if found:
            overwritten = (int(found[1]) - int(found[2])) * 512
            run["bytes_written_per_delta_byte"] = round(written / overwritten, 3) if overwritten else None
        else:
            detail["note"] = f"the snapshot is not valid: {result['status']}"
    elif system.startswith("dm-"):
        if system == "dm-thin-64":
            written -= result["foreground_bytes"]
        elif system == "dm-linear":
            return run, detail
        overwritten = distinct_pages(result["load"], after, span) * PAGE
        run["bytes_written_per_delta_byte"] = round(written / overwritten, 3)
    return run, detail


def label(run):
    return f"{run['system']} {run['variant']}".strip().rstrip("-").strip()


def number(x, digits=0):
    if x is None:
        return "-"
    return f"{x:,.{digits}f}" if isinstance(x, (int, float)) else str(x)


def table(head, rows):
    """A markdown table whose columns are aligned in plain text too."""
    widths = [max(len(str(r[i])) for r in [head] + rows) for i in range(len(head))]
    def line(row):
        cells = [str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        return "| " + " | ".join(cells) + " |"
    rule = "|" + "|".join(("-" if i == 0 else "-") * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule] + [line(r) for r in rows])


def targets(runs, repeat):
    """The targets of the issue and whether they are met."""
    out = []
    def find(system, variant, load):
        for run in runs:
            if run["system"] == system and (variant is None or run["variant"] == variant) and run["load"] == load:
                return run
        return None
    def add(text, met, value):
        out.append({"target": text, "met": met, "value": value})
    for load in ("zipf", "mixed", "seq"):
        linear = find("dm-linear", None, load)
        values, ok = [], []
        for variant in ("delta-off", "delta-model", "image-off", "image-model"):
            run = find("presnap", variant, load)
            if run and linear:
                part = run["before"]["iops"] / linear["before"]["iops"] - 1
                values.append(f"{variant} {100 * part:+.1f} %")
                ok.append(part >= -0.05)
        if values:
            add(f"{load}: no snapshot, at most 5 % fewer IOPS than dm-linear", all(ok), ", ".join(values))
        run = find("presnap", "delta-model", load)
        if run:
            part = run["after"]["p99_us"] / run["before"]["p99_us"]
            value = f"{part:.2f} times ({number(run['before']['p99_us'])} -> {number(run['after']['p99_us'])} us)"
            add(f"{load}: delta-model, p99 after T0 at most 1.5 times that before", part <= 1.5, value)
        run = find("presnap", "image-model", load)
        rivals = [r for r in runs if r["system"] == "dm-snapshot" and r["load"] == load]
        if run and rivals:
            best = min(rivals, key=lambda r: r["after"]["p99_us"])
            part = run["after"]["p99_us"] / best["after"]["p99_us"]
            value = f"{part:.2f} times {label(best)} ({number(run['after']['p99_us'])} : {number(best['after']['p99_us'])} us)"
            add(f"{load}: image-model, p99 after T0 clearly (25 %) below dm-snapshot's", part <= CLEARLY_BELOW, value)
    for size in ("10", "400"):
        for variant in ("delta-off", "delta-model"):
            run = find("presnap", variant, f"zipf-{size}MiB")
            if run:
                us = run["freeze_us"]
                value = f"{us / 1000:.2f} ms" if us is not None else "no snapshot"
                add(f"{variant}: freeze at most 5 ms with a delta of {size} MiB", us is not None and us <= 5000, value)
    if repeat is not None:
        add("two runs of the same give the same digits", not repeat, "the same" if not repeat else "; ".join(repeat))
    return out


def difference(results):
    """What differs between the two VMs that did the same; None if they did not run."""
    one = [r for r in results if r["vm"] == "repeat-1"]
    two = [r for r in results if r["vm"] == "repeat-2"]
    if not one or len(one) != len(two):
        return None
    out = []
    for a, b in zip(one, two):
        for part in ("before", "after"):
            x, y = a["result"][part], b["result"][part]
            different = [f"{k} {x[k]} : {y[k]}" for k in ("iops", "mean_us", "p99_us", "max_us") if x[k] != y[k]]
            if different:
                out.append(f"{a['variant']} {part}: {', '.join(different)}")
        x, y = words(a["state"]), words(b["state"])
        different = [f"{k} {x[k]} : {y.get(k)}" for k in x if x[k] != y.get(k)]
        if different:
            out.append(f"{a['variant']} snapshot: {', '.join(different[:4])}")
    return out


def main():
    directory, names = sys.argv[1], sys.argv[2:]
    results, troubles = read(directory, names)
    judged = []
    for result in results:
        if result["vm"].startswith("repeat"):
            continue
        try:
            judged.append(judge(result, result.get("origin_mib", 256) << 20))
        except (KeyError, IndexError, TypeError, ZeroDivisionError) as e:
            troubles.append(f"{result['vm']}: {result['system']} {result['variant']} {result['load']}: {e!r}")
    runs = [r for r, _ in judged]
    listed = targets(runs, difference(results))
    with open(f"{directory}/report.json", "w", encoding="utf-8") as f:
        json.dump({"runs": runs, "targets": listed}, f, indent=1)
        f.write("\n")

    text = []
    for load in dict.fromkeys(r["load"] for r in runs):
        these = sorted((j for j in judged if j[0]["load"] == load), key=lambda j: ORDER.index(
            {v: k for k, v in NAMES.items()}.get((j[0]["system"], j[0]["variant"]), j[0]["system"])))
        title = {"zipf": "4 KiB random writes, zipf 1.1, queue depth 16", "seq": "64 KiB sequential writes, queue depth 4",
                 "mixed": "like a database: pages of 4 to 16 KiB, a quarter reads, a log with FUA; queue depth 16"}
        text.append(f"## {load}: {title.get(load, 'a delta of this size, 4 KiB zipf writes inside it')}\n")
        rows = [[label(r)] + [number(r["before"][k]) for k in ("iops", "p50_us", "p99_us", "max_us")]
                + [number(r["after"][k]) for k in ("iops", "p50_us", "p99_us", "max_us")]
                + [number(None if r["freeze_us"] is None else r["freeze_us"] / 1000, 2), number(r["seal_ms"]),
                   number(r["bytes_written_per_delta_byte"], 2)] for r, _ in these]
        text.append(table(["system", "IOPS", "p50 us", "p99 us", "max us", "IOPS after", "p50", "p99", "max", "freeze ms",
                           "seal ms", "bytes/delta"], rows) + "\n")
        ours = [(r, d) for r, d in these if r["system"] == "presnap"]
        if ours:
            keys = ["delta_blocks", "staged_valid_blocks", "stale_blocks", "final_copy_blocks", "guarded_blocks", "drained_blocks",
                    "mirrored_writes", "guard_stalls", "inflight_wait_us"]
            rows = [[label(r)] + [number(d.get(k)) for k in keys]
                    + [number(d["staging_iops"]), number(d["staging_p99_us"])] for r, d in ours]
            head = ["presnap's blocks"] + [k.replace("_blocks", "").replace("_", " ") for k in keys] + ["IOPS while staging", "p99 us while staging"]
            text.append(table(head, rows) + "\n")
        for r, d in these:
            if d["note"]:
                text.append(f"- {label(r)}: {d['note']}")
        if any(d["note"] for _, d in these):
            text.append("")
    rows = [[t["target"], "yes" if t["met"] else "NO", t["value"]] for t in listed]
    goals = "## Targets\n\n" + (table(["target", "met", "measured"], rows) if rows else "nothing measured") + "\n"
    predictors = sorted({d["predictor"] for _, d in judged if d["predictor"]})
    notes = ["## How to read this\n",
             "Virtual time: the guest's clock counts instructions, one a nanosecond, one CPU; disks are null_blk in memory with "
             "80 us for each request. So the CPU is the bottleneck of most runs, and IOPS tell instructions.",
             "`before` is 0.75 to 1.5 s of the load, `after` the 2 s from T0 (5.25 s). The variants `-model` get the snapshot "
             "requested 3.75 s before T0 (`within 3750`), so that they can copy ahead; that time is in neither column, but the "
             "worst of its five windows is with presnap's blocks. The others get it at T0.",
             f"Predictor of the variants `-model`: {'; '.join(predictors) or 'none ran'}.",
             "`freeze` of dm-snapshot and dm-thin is the time from suspending to resuming the origin with dmsetup, three processes; "
             "they have nothing to seal: their delta is never copied anywhere.",
             "`bytes/delta`: bytes written to region, cow device or pool beside the foreground's own, per byte that had to be "
             "preserved: for scope delta the delta, for image also clean blocks overwritten after T0, for the others what was overwritten after T0 "
             "(dm-snapshot with 4 KiB chunks: counted; 64 KiB and dm-thin: expected from the load's distribution). What presnap staged for "
             "the snapshot after this one is not in it.", ""]
    if troubles:
        notes += ["## Troubles\n"] + [f"- {t}" for t in troubles] + [""]
    report = "# Benchmarks in virtual time\n\n" + goals + "\n" + "\n".join(text) + "\n" + "\n".join(notes)
    with open(f"{directory}/report.md", "w", encoding="utf-8") as f:
        f.write(report)
    print("\n".join(text) + "\n" + goals)
    for t in troubles:
        print(f"trouble: {t}")
    sys.exit(0 if runs else 1)


main()
