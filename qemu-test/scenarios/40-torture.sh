# SPDX-License-Identifier: GPL-2.0-only
# nvme: 64M:origin 384M:region
# timeout: 900
# file: models:/presnap/models
# file: qemu-test/blobs:/presnap/blobs
# The oracle of content: writers of self-describing blocks run random I/O while snapshots are taken at random
# instants; each image must be a consistent cut. With every predictor, mirroring forced, and all freeze budgets.
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
torture() { # torture NAME SNAPSHOTS SECONDS KNOB=VALUE...
	local name=$1 n=$2 seconds=$3 knob
	shift 3
	presnap format --origin "$O" "$R" --force >/dev/null 2>&1
	dmsetup create p --table "0 $(sectors "$O") presnap $O $R"
	local s; s=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
	for knob in "$@"; do
		case $knob in
		model=*) cat "${knob#*=}" >"$s/model/blob" && echo 1 >"$s/model/commit" || die "model: $(cat "$s/model/error")" ;;
		*) echo "${knob#*=}" >"$s/${knob%%=*}" ;;
		esac
	done
	: >/tmp/states
	if ! presnap-torture --device /dev/mapper/p --seconds "$seconds" --threads 6 --seed "${SEED:-1}" --snapshots "$n" \
		--snapshot-cmd "/tmp/snap ${WITHIN:-within 300}" --verify-cmd "/tmp/view {id}" --done-cmd "/tmp/done {id}" \
		--lag 1 >/tmp/torture.log 2>&1; then
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
torture ewma "${N:-9}" "${S:-8}" predictor=ewma tick_ms=50 horizon_ms=500
torture off "${N:-9}" "${S:-8}" predictor=off
torture mirror-forced "${N:-9}" "${S:-8}" predictor=age tick_ms=20 threshold_permille=1000 mirror=force lead_ms=2000
torture budget-0 "${N:-9}" "${S:-8}" predictor=stream tick_ms=50 freeze_budget_us=0
torture unlimited "${N:-9}" "${S:-8}" predictor=ewma tick_ms=50 freeze_budget_us=unlimited
with_model() { torture "$1" "${N:-9}" "${S:-8}" predictor=model tick_ms=50 "model=$2" horizon_ms=500 threshold_permille=500; }
with_model trained-model /presnap/models/default.psm
with_model random-weights /presnap/blobs/mlp.psm
[ "$total" -ge 50 ] || die "only $total snapshots"
echo "$total snapshots in this run"
