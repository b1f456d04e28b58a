# SPDX-License-Identifier: GPL-2.0-only
# nvme: 64M:origin 384M:region
# timeout: 900
# cost: 300
# file: models:/presnap/models
# file: qemu-test/blobs:/presnap/blobs
# modprobe: dm-delay
# The oracle of content: writers of self-describing blocks run random I/O while snapshots are taken at random
# instants; each image must be a consistent cut. With every predictor, mirroring forced, and all freeze budgets; and on
# slow disks, where writes overtake copies, and writers are held for long. Arguments: the modes to run (all).
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region)
cat >/tmp/snap <<'X'
#!/bin/bash
# Takes a snapshot, prints its id when it has been sealed.
id=$(dmsetup message p 0 snapshot scope image "$@") || exit 1
while :; do
	state=$(dmsetup message p 0 state "$id")
	case $state in *" sealed "*) break ;; *dropped*) echo "$state" >&2; exit 1 ;; esac
	sleep 0.05
done
echo "$state" >>/tmp/states
echo "$id"
X
cat >/tmp/view <<'X'
#!/bin/bash
# Makes image $1 readable, prints its path.
dmsetup create "v$1" --readonly --table "0 $(blockdev --getsz /dev/mapper/p) presnap-image /dev/mapper/p $1"
echo "/dev/mapper/v$1"
X
cat >/tmp/done <<'X'
#!/bin/bash
# Removes the view of image $1 and all snapshots up to it.
dmsetup remove "v$1"
dmsetup message p 0 list | while read -r id _; do
	[ "$id" = - ] || [ "$id" -gt "$1" ] || { dmsetup message p 0 delete "$id" && sleep 0.1; }
done
X
chmod +x /tmp/snap /tmp/view /tmp/done
total=0
only=" $* "
# torture NAME SNAPSHOTS SECONDS [--OPTION=VALUE...] [KNOB=VALUE...]: options are those of presnap-torture
torture() {
	local name=$1 n=$2 seconds=$3 word options=() knobs=()
	shift 3
	case $only in "  " | *" $name "*) ;; *) return 0 ;; esac
	for word in "$@"; do
		case $word in --*) options+=("$word") ;; *) knobs+=("$word") ;; esac
	done
	presnap format --origin "$O" "$R" --force >/dev/null 2>&1
	dmsetup create p --table "0 $(sectors "$O") presnap $O $R"
	local s; s=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
	for word in "${knobs[@]}"; do
		case $word in
		model=*) cat "${word#*=}" >"$s/model/blob" && echo 1 >"$s/model/commit" || die "model: $(cat "$s/model/error")" ;;
		*) echo "${word#*=}" >"$s/${word%%=*}" ;;
		esac
	done
	: >/tmp/states
	if ! presnap-torture --device /dev/mapper/p --seconds "$seconds" --seed "${SEED:-1}" --snapshots "$n" \
		--snapshot-cmd "/tmp/snap ${WITHIN:-within 300}" --verify-cmd "/tmp/view {id}" --done-cmd "/tmp/done {id}" \
		"${options[@]}" >/tmp/torture.log 2>&1; then
		tail -40 /tmp/torture.log
		dmsetup status
		die "torture with $name"
	fi
	tail -1 /tmp/torture.log
	tail -1 /tmp/states
	note "staged valid $(cat "$s/stats/staged_valid_blocks"), stale $(cat "$s/stats/stale"), mirrored $(cat "$s/stats/mirrored_writes"), guarded $(cat "$s/stats/guarded_blocks"), drained $(cat "$s/stats/drained_blocks"), final $(cat "$s/stats/final_copy_blocks"), dropped $(cat "$s/stats/snapshots_dropped")"
	total=$((total + $(cat "$s/stats/snapshots")))
	dmsetup remove p
	ok "$name"
}
# slow MIB READ WRITE REGION_WRITE COMMAND...: with an origin of so many MiB whose reads and writes take so many milliseconds
# longer, and a region whose writes do.
slow() {
	local O=$O R=$R
	dmsetup create slow-origin --table "0 $(($1 * 2048)) delay $O 0 $2 $O 0 $3 $O 0 0"
	dmsetup create slow-region --table "0 $(sectors "$R") delay $R 0 0 $R 0 $4 $R 0 0"
	shift 4
	O=/dev/mapper/slow-origin R=/dev/mapper/slow-region
	"$@"
	dmsetup remove slow-origin
	dmsetup remove slow-region
}
# Nothing is staged, so the freeze copies all that is dirty, from a slow disk. A write let through meanwhile would be missed
# in a block that has been copied, while later ones of the same thread are not. The pauses make that the writes in flight
# end even if the gate does not hold them. Reading the image is as slow: it meets writers on its blocks in the origin.
WITHIN="within 100" slow 32 20 0 0 torture held 4 6 --threads=8 --alone --pause-us=1000 predictor=off freeze_budget_us=unlimited
# Everything is staged, hot or not, again and again until T0, with no image in the way that would have to be guarded
# first. A copy takes so long that many are overtaken by a write: between its read and its end, or issued before its end
# and on the disk after it. Such a copy must not count, or the image has what was overwritten before T0.
overtaken() {
	WITHIN="within 800" slow 16 0 5 20 torture "$@" --threads=6 --alone predictor=age tick_ms=10 threshold_permille=1000 lead_ms=2000
}
overtaken overtaken 4 6 mirror=off
overtaken overtaken-mirrored 4 6 mirror=force
# On a slow kernel half as many.
N=${N:-$((${SLOW:-1} > 1 ? 3 : 4))}
usual() { torture "$1" "$N" "${S:-6}" --threads=6 --lag=1 "${@:2}"; }
usual ewma predictor=ewma tick_ms=50 horizon_ms=500
usual off predictor=off
usual mirror-forced predictor=age tick_ms=20 threshold_permille=1000 mirror=force lead_ms=2000
usual budget-0 predictor=stream tick_ms=50 freeze_budget_us=0
usual unlimited predictor=ewma tick_ms=50 freeze_budget_us=unlimited
with_model() { usual "$1" predictor=model tick_ms=50 "model=$2" horizon_ms=500 threshold_permille=500; }
with_model trained-model /presnap/models/default.psm
with_model random-weights /presnap/blobs/mlp.psm
[ -n "$*" ] || [ "$total" -ge $((8 + 7 * N)) ] || die "only $total snapshots"
result "$total snapshots, most modes $N"
