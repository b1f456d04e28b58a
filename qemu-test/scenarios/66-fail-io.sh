# SPDX-License-Identifier: GPL-2.0-only
# nvme: 4M:origin 24M:region
# kernel: debug
# file: qemu-test/inject.sh
# timeout: 900
# allow: kmemleak: Cannot allocate a scan area
# Every allocation of a snapshot's way fails once, with copies ahead, mirrors, guards and the image: no write fails, no content is wrong, and the
# snapshot is sealed or dropped for a reason. Then a tenth of all allocations, while writers run.
. /presnap/lib.sh
load
. /presnap/inject.sh
of_module
O=$(serial_disk origin) R=$(serial_disk region)
N=$(sectors "$O")
dd if=/dev/urandom of=/tmp/noise bs=1M count=2 status=none
dd if=/dev/urandom of="$O" bs=1M count=$((N / 2048)) oflag=direct status=none
dd if="$O" of=/tmp/want bs=1M iflag=direct status=none
presnap format --origin "$O" "$R" --force >/dev/null 2>&1
dmsetup create p --table "0 $N presnap $O $R"
S=/sys/block/dm-0/presnap
for knob in predictor=age tick_ms=10 threshold_permille=1000 mirror=force lead_ms=1000; do echo "${knob#*=}" >"$S/${knob%%=*}"; done

# put BLOCK COUNT: noise to p and to the file that says what must be there, new each time
seed=0
put() {
	seed=$(((seed + 37) % 300))
	dd if=/tmp/noise of=/tmp/want bs=4k skip=$seed seek="$1" count="$2" conv=notrunc status=none &
	dd if=/tmp/noise of=/dev/mapper/p bs=4k skip=$seed seek="$1" count="$2" oflag=direct conv=notrunc status=none || return 1
	wait $! # the file's
}
# until_state STATES: waits for one of them, sets state
until_state() {
	local i
	for ((i = 0; i < 300 * SLOW; i++)); do
		state=$(message state "$id")
		[[ $state =~ ^$id\ ($1) ]] && return 0
		nap 0.05
	done
	echo "waited for $1: $state"
	return 1
}
round() {
	local b
	# Written, copied ahead, and written again: that is mirrored.
	for b in $((n % 900)) $(((n * 7) % 1000)); do put $b 9 || return 1; done
	nap 0.2
	put $((n % 900 + 2)) 3 || return 1
	id=$(message snapshot scope image within 60) || return 1
	until_state 'draining|sealing|sealed|dropped' || return 1
	cp /tmp/want /tmp/at-t0
	# Guarded, some of it beside what is in the delta.
	put $((n % 900)) 5 && put $(((n * 13) % 1000)) 8 && put $(((n * 7) % 1000 + 4)) 9 || return 1
	until_state 'sealed|dropped'
}
right() {
	local status
	[ "$1" = 0 ] || return 1
	same /tmp/want "$O" || { why="the origin is not what was written" && return 1; }
	status=$(dmsetup status p)
	[[ $status == *" rw "* ]] || { why="status: $status" && return 1; }
	case $state in
	*dropped*) dropped=$((dropped + 1)) ;;
	*)
		dmsetup create v --readonly --table "0 $N presnap-image /dev/mapper/p $id"
		same /tmp/at-t0 /dev/mapper/v || { why="image $id is not what was there at T0" && return 1; }
		dmsetup remove v
		message delete "$id"
		gone "$id" || return 1
		;;
	esac
}
dropped=0
EACH=${EACH:-40} GROW=${GROW:-4} one_by_one "a snapshot, copied ahead, mirrored and guarded" - round right
note "$dropped snapshots dropped; staged valid $(cat $S/stats/staged_valid_blocks), mirrored $(cat $S/stats/mirrored_writes), guarded $(cat $S/stats/guarded_blocks)"
for f in staged_valid_blocks mirrored_writes guarded_blocks; do [ "$(cat $S/stats/$f)" -gt 0 ] || die "none of $f"; done
for p in "${!places[@]}"; do note "${places[$p]} times at$p"; done
dmsetup remove p

# At random, under load: whoever asks for something tries again.
cat >/tmp/again <<'X'
#!/bin/bash
# again COMMAND...: tries a command until it succeeds
for _ in $(seq 200); do "$@" 2>>/tmp/again.err && exit 0; done
exit 1
X
cat >/tmp/snap <<'X'
#!/bin/bash
for _ in $(seq 50); do
	id=$(/tmp/again dmsetup message p 0 snapshot scope image within 300) || exit 1
	while :; do
		state=$(/tmp/again dmsetup message p 0 state "$id")
		case $state in *" sealed "*) echo "$id"; exit 0 ;; *dropped*) echo "$state" >>/tmp/dropped; break ;; esac
		sleep 0.05
	done
done
exit 1
X
cat >/tmp/view <<'X'
#!/bin/bash
/tmp/again dmsetup create "v$1" --readonly --table "0 $(blockdev --getsz /dev/mapper/p) presnap-image /dev/mapper/p $1"
echo "/dev/mapper/v$1"
X
cat >/tmp/done <<'X'
#!/bin/bash
/tmp/again dmsetup remove "v$1"
/tmp/again dmsetup message p 0 delete "$1"
sleep 0.1
X
chmod +x /tmp/again /tmp/snap /tmp/view /tmp/done
: >/tmp/dropped
presnap format --origin "$O" "$R" --force >/dev/null 2>&1
dmsetup create p --table "0 $N presnap $O $R"
for knob in predictor=age tick_ms=20 threshold_permille=1000 mirror=force lead_ms=1000; do echo "${knob#*=}" >"$S/${knob%%=*}"; done
echo 0 >$F/verbose
echo 1 >$F/interval
echo 1000000000 >$F/times
echo 10 >$F/probability
presnap-torture --device /dev/mapper/p --seconds "${SECONDS_OF_TORTURE:-60}" --seed 1 --snapshots "${SNAPSHOTS:-4}" --threads=3 --lag=0 \
	--snapshot-cmd "/tmp/snap" --verify-cmd "/tmp/view {id}" --done-cmd "/tmp/done {id}" >/tmp/torture.log 2>&1 || {
	echo 0 >$F/probability
	tail -n 40 /tmp/torture.log /tmp/again.err
	die "torture"
}
echo 0 >$F/probability
random=$((1000000000 - $(cat $F/times)))
tail -n 1 /tmp/torture.log
[ $random -gt 100 ] || die "only $random allocations failed in the torture"
ok "$random allocations failed at random in a torture; $(cat $S/stats/snapshots) snapshots sealed, $(wc -l </tmp/dropped) dropped, $(grep -c 'annot allocate' /tmp/again.err || :) commands tried again"
dmsetup remove p
leaks_here "I/O"
result "$((injected + random)) allocation failures injected"
