# SPDX-License-Identifier: GPL-2.0-only
# report.awk file=1 PREDICTORS file=2 LATENCY file=3 PROOFS file=4 STATES: report.json, or with -v table=1 the table.
# Each measured number comes from the kernel's record of the snapshot (STATES) or the event trace (LATENCY).
file == 1 {predictor[$1] = $2 == "model" ? model : $2; next}
file == 2 {p99[$1, $2] = $3; count[$1, $2] = $4; next}
file == 3 {equal[$1] = $2; fsck[$1] = $3; db[$1] = $4; next}
{
	order[++n] = $1
	for (i = 3; i <= NF; i++) {
		split($i, kv, "=")
		v[$1, kv[1]] = kv[2]
	}
}
function num(x) {return x == "" ? "null" : x}
function bool(x) {return x == 1 ? "true" : "false"}
function ms(us) {return us == "" ? "-" : sprintf("%.1f", us / 1000)}
function kib(blocks) {return blocks * 4}
function yes(x) {return x == 1 ? "yes" : "NO"}
END {
	if (table == 1) {
		print "              freeze inflight    seal |              KiB of the delta                | hit  waste |  write p99, ms | replica  fsck   db"
		print " id predictor     ms  wait ms      ms |    all   staged  freeze  guarded  drained    |   %    KiB | before   after |   equal clean   ok"
		for (k = 1; k <= n; k++) {
			id = order[k]
			delta = v[id, "delta_blocks"]
			printf "%3d %-9s %6s %8s %7s | %6d   %6d  %6d  %7d  %7d    | %3d %6d | %6s  %6s | %7s %5s %4s\n",
				id, predictor[id], ms(v[id, "freeze_us"]), ms(v[id, "inflight_wait_us"]), ms(v[id, "seal_us"]),
				kib(delta), kib(v[id, "staged_valid_blocks"]), kib(v[id, "final_copy_blocks"]), kib(v[id, "guarded_blocks"]), kib(v[id, "drained_blocks"]),
				(delta == 0 ? 0 : 100 * v[id, "hits"] / delta), kib(v[id, "wasted"]), ms(p99[id, "before"]), ms(p99[id, "after"]), yes(equal[id]), yes(fsck[id]), yes(db[id])
		}
		print ""
		print "all: written since the snapshot before. staged: copied before T0 and still valid. freeze: copied while writes were held."
		print "guarded: copied because a write was about to change it. drained: copied after T0. hit: staged of all. waste: staged, then stale."
		print "write p99: of all writes to the device that ended in the 2 s before T0, and that ended after it and began in the 2 s after it."
		exit
	}
	printf "{\"kernel\": \"%s\",\n \"snapshots\": [", kernel
	for (k = 1; k <= n; k++) {
		id = order[k]
		printf "%s\n  {\"id\": %d, \"predictor\": \"%s\", \"freeze_us\": %s, \"inflight_wait_us\": %s, \"seal_ms\": %.3f, \"delta_blocks\": %s, ", ((k == 1 ? "" : ",")), id, predictor[id],
			num(v[id, "freeze_us"]), num(v[id, "inflight_wait_us"]), v[id, "seal_us"] / 1000, num(v[id, "delta_blocks"])
		printf "\"staged_valid_blocks\": %s, \"final_copy_blocks\": %s, \"guarded_blocks\": %s, \"drained_blocks\": %s, \"copied_blocks_total\": %s, ",
			num(v[id, "staged_valid_blocks"]), num(v[id, "final_copy_blocks"]), num(v[id, "guarded_blocks"]), num(v[id, "drained_blocks"]), num(v[id, "copied_blocks_total"])
		printf "\"hits\": %s, \"misses\": %s, \"wasted_blocks\": %s, ", num(v[id, "hits"]), num(v[id, "misses"]), num(v[id, "wasted"])
		printf "\"write_p99_us_before\": %s, \"write_p99_us_after\": %s, \"writes_before\": %d, \"writes_after\": %d, ",
			num(p99[id, "before"]), num(p99[id, "after"]), count[id, "before"], count[id, "after"]
		printf "\"replica_equal\": %s, \"fsck_clean\": %s, \"db_consistent\": %s}", bool(equal[id]), bool(fsck[id]), bool(db[id])
	}
	printf "\n ],\n"
	printf " \"baseline\": {\"id\": %d, \"replica_equal\": %s, \"fsck_clean\": %s, \"db_consistent\": %s},\n", baseline, bool(equal[baseline]), bool(fsck[baseline]), bool(db[baseline])
	printf " \"latency_source\": \"kernel events block_bio_queue and block_bio_complete of the presnap device\",\n"
	printf " \"note\": \"an emulated machine: times are not performance\"}\n"
}
