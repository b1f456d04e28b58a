# SPDX-License-Identifier: GPL-2.0-only
# latency.awk file=1 STATES file=2 EVENTS: for each write that completed in the 2 s before a T0, or was completed after it and submitted in
# less than 2 s after it, a line "ID before|after MICROSECONDS". Writes held by the freeze are thus among those after.
file == 1 {
	id[++n] = $1
	for (i = 3; i <= NF; i++) if ($i ~ /^t0_realtime_ns=/) t0[n] = substr($i, 16) / 1000
	next
}
{
	for (i = 3; i <= NF; i++) if ($i == "block_bio_queue:" || $i == "block_bio_complete:" || $i == "tracing_mark_write:") break
	if (i > NF) next
	now = $(i - 1)
	sub(/:$/, "", now)
	now *= 1000000
}
$i == "tracing_mark_write:" {
	if ($(i + 1) == "realtime") shift_us = $(i + 2) * 1000000 - now
	next
}
# A write of data: W in the flags; a flush alone has no W, a discard D.
$(i + 2) !~ /W/ {next}
$i == "block_bio_queue:" {
	begun[$(i + 3)] = now
	next
}
($(i + 3) in begun) {
	from = begun[$(i + 3)] + shift_us
	to = now + shift_us
	delete begun[$(i + 3)]
	for (k = 1; k <= n; k++) {
		if (to >= t0[k] - 2000000 && to < t0[k]) printf "%d before %.0f\n", id[k], to - from
		else if (to >= t0[k] && from < t0[k] + 2000000) printf "%d after %.0f\n", id[k], to - from
	}
}
