# SPDX-License-Identifier: GPL-2.0-only
# nvme: 64M:origin 192M:region
# smp: 2
# timeout: 900
# cost: 45
# What block devices are tested with: discards and zeroing of all sizes and alignments, storms of flushes, questions without a
# pause, schedulers that change; suspends, reloads, refused sizes and removals under full I/O, with snapshots, staging and freezes
# in flight; removal by force under writers. No write is lost, no image is wrong, nothing hangs. Argument: seconds of each part (5).
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region)
DISKS=("${O#/dev/}" "${R#/dev/}")
N=$(sectors "$O")
S=/sys/block/dm-0/presnap
T=${1:-5}
# ok WORDS...: with the time that it took
_since=$(now_ms)
ok() {
	echo "ok: $* ($(($(now_ms) - _since)) ms)"
	_since=$(now_ms)
}
create() {
	dmsetup create p --table "0 $N presnap $O $R$*"
	[ -d $S ] || die "no $S"
}
format() { presnap format --origin "$O" "$R" --force >/dev/null 2>&1; }
# staging: all that is dirty is copied ahead again and again, and written in two places
staging() {
	echo age >$S/predictor
	echo 20 >$S/tick_ms
	echo 1000 >$S/threshold_permille
	echo 500 >$S/horizon_ms
	echo force >$S/mirror
}
format
create
presnap-stress discards --name p --seed 1 || die "discards"
staging
presnap-stress discards --name p --seed 2 || die "discards while all is staged"
ok "discards and zeroing of all sizes and alignments"

for i in 1 2 3; do presnap snapshot p >/dev/null; done
presnap-stress questions --name p --seconds 3 || die "questions"
ok "questions without a pause"

# Each scheduler that the kernel has, over and over, below and while flushes storm.
schedulers() { # schedulers FILE: until it is there
	local disk s n=0
	while [ ! -e "$1" ]; do
		for disk in "${DISKS[@]}"; do
			for s in $(tr -d '[]' <"/sys/block/$disk/queue/scheduler"); do
				echo "$s" >"/sys/block/$disk/queue/scheduler"
				n=$((n + 1))
			done
		done
		sleep 0.05
	done
	for disk in "${DISKS[@]}"; do echo none >"/sys/block/$disk/queue/scheduler"; done
	echo $n >"$1"
}
for m in bfq kyber-iosched; do modprobe $m 2>/dev/null || note "this kernel has no $m"; done
note "schedulers: $(cat "/sys/block/${O#/dev/}/queue/scheduler")"
rm -f /tmp/stop
schedulers /tmp/stop &
switching=$!
presnap-stress flushes --device /dev/mapper/p --seconds $((T / 2)) --threads 3 >/tmp/flushes &
flushing=$!
taken=0
while kill -0 $flushing 2>/dev/null; do
	presnap snapshot p --scope image >/tmp/id
	taken=$((taken + 1))
	presnap list p | awk '$1 ~ /^[0-9]+$/ {print $1}' | head -n -2 | xargs -r presnap rm p
done
wait $flushing || die "flushes"
touch /tmp/stop
wait $switching || die "the schedulers could not be changed"
ok "$(cat /tmp/flushes), $taken snapshots, $(cat /tmp/stop) changes of the scheduler"
dmsetup remove p
presnap check --data "$R" >/dev/null 2>&1 || die "the region after flushes"

# Everything at once, on half of the disk: each image is read in full.
NVME=$O
dmsetup create o --table "0 $((N / 2)) linear $NVME 0"
O=/dev/mapper/o
N=$(sectors $O)
S=/sys/block/dm-1/presnap
cat >/tmp/snap <<'X'
#!/bin/bash
exec presnap snapshot p --scope image --within 200ms --freeze-budget "$([ $((RANDOM % 2)) = 0 ] && echo unlimited || echo 0)"
X
cat >/tmp/view <<'X'
#!/bin/bash
exec presnap image p "$1" "v$1"
X
cat >/tmp/done <<'X'
#!/bin/bash
presnap image --remove "v$1"
dmsetup message p 0 list | awk -v id="$1" '$1 != "-" && $1 <= id {print $1}' | xargs -r presnap rm p
X
chmod +x /tmp/snap /tmp/view /tmp/done
format
create
staging
presnap-torture --device /dev/mapper/p --seconds "$T" --seed 5 --threads 4 --snapshots $((T / 2 + 1)) --lag 1 --snapshot-cmd /tmp/snap \
	--verify-cmd "/tmp/view {id}" --done-cmd "/tmp/done {id}" >/tmp/torture.log 2>&1 &
torture=$!
rm -f /tmp/stop
schedulers /tmp/stop &
switching=$!
wait_for 20 sh -c "[ \$(cat $S/op) -gt 100 ]"
# Open here too: the torture may end at any moment, and then the device could go.
exec 9<"/dev/mapper/p"
declare -A did=()
count() { did[$1]=$((${did[$1]:-0} + 1)); }
n=0
while kill -0 $torture 2>/dev/null; do
	# Each in eight, in another order each time.
	n=$((n + 1))
	case $(((3 * n + n / 8) % 8)) in
	0) dmsetup suspend p && sleep 0.05 && dmsetup resume p && count suspend ;;
	1) dmsetup suspend --noflush --nolockfs p && sleep 0.05 && dmsetup resume p && count noflush ;;
	2) dmsetup reload p --table "0 $N presnap $O $R 2 scope image" && dmsetup resume p && count reload ;;
	3) dmsetup reload p --table "0 $N presnap $O $R" && dmsetup resume --noflush --nolockfs p && count reload ;;
	4)
		if dmsetup reload p --table "0 $((N / 2)) presnap $O $R" 2>/dev/null; then die "a smaller table is taken"; fi
		if dmsetup reload p --table "0 $((N * 2)) presnap $O $R" 2>/dev/null; then die "a larger table is taken"; fi
		count resize
		;;
	5)
		if rmmod dm_presnap 2>/dev/null; then die "the module went away"; fi
		count rmmod
		;;
	6)
		if dmsetup remove p 2>/dev/null; then die "the device went away"; fi
		count remove
		;;
	7)
		# The live table is given up in favour of one that is thrown away.
		dmsetup reload p --table "0 $N presnap $O $R 2 on_error fail-writes" && dmsetup clear p && count clear
		;;
	esac
	timeout 5 dmsetup status p >/dev/null || die "no status within 5 s"
	sleep 0.1
done
exec 9<&-
wait $torture || { tail -n 30 /tmp/torture.log; dmsetup status; die "torture"; }
touch /tmp/stop
wait $switching || die "the schedulers could not be changed"
tail -n 1 /tmp/torture.log
for what in suspend noflush reload resize rmmod remove clear; do
	[ "${did[$what]:-0}" -ge 1 ] || die "never tried: $what"
done
note "stale $(cat $S/stats/stale), mirrored $(cat $S/stats/mirrored_writes), guarded $(cat $S/stats/guarded_blocks), dropped $(cat $S/stats/snapshots_dropped)"
eq "$(cat $S/stats/io_errors)" 0 "errors of I/O"
dmsetup remove p
presnap check --data "$R" >/dev/null 2>&1 || die "the region after everything at once"
ok "under torture:$(for what in "${!did[@]}"; do printf ' %s %s' "${did[$what]}" "$what"; done), $(cat /tmp/stop) changes of the scheduler"

dmsetup remove o
O=$NVME
N=$(sectors "$O")
S=/sys/block/dm-0/presnap

# By force under writers, that have it open: in quiet, in the middle of a snapshot, and in the middle of a freeze. What was acknowledged is on the origin,
# and is part of what changed.
format
for how in quiet snapshot freeze; do
	create
	[ $how = quiet ] || staging
	presnap snapshot p >/dev/null
	presnap-stress writers --device /dev/mapper/p --origin "$O" --fails --seconds 60 >/tmp/writers &
	writers=$!
	wait_for 20 sh -c "[ \$(cat $S/dirty_blocks) -gt 500 ]"
	case $how in
	snapshot) dmsetup message p 0 snapshot freeze_budget 0 >/dev/null ;;
	freeze) dmsetup message p 0 snapshot freeze_budget unlimited >/dev/null ;;
	esac
	timeout 30 dmsetup remove --force p 2>/dev/null || :
	wait $writers || die "writers, $how"
	wait_for 10 sh -c '! dmsetup info p || dmsetup remove p'
	presnap check --data "$R" >/dev/null 2>&1 || die "the region after removal by force, $how"
	create
	blocks=$(awk '{print $3}' /tmp/writers) dirty=$(cat $S/dirty_blocks)
	case $how in
	quiet)
		# Writes that failed may have got there, one of each writer.
		[ "$dirty" -ge "$blocks" ] && [ "$dirty" -le $((blocks + 8)) ] || die "$dirty dirty blocks after $blocks were written"
		dmsetup status p | grep -q ' rw -$' || die "status after removal by force: $(dmsetup status p)"
		;;
	*) dmsetup message p 0 list | tail -n 1 ;;
	esac
	dmsetup remove p
	ok "removal by force, $how: $(cat /tmp/writers)"
done
rmmod dm_presnap
ok "the module is gone"
