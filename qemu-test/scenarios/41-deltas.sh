# SPDX-License-Identifier: GPL-2.0-only
# nvme: 24M:origin 256M:region 24M:replica
# timeout: 300
# cost: 70
# modprobe: dm-delay
# The oracle of content for deltas. An image shows blocks that no snapshot preserves from the origin, so a block that a
# delta lacks may look right in it. A replica does not: it holds deltas, and nothing else. So writers of self-describing
# blocks run while snapshots of both scopes are taken, sent and received one by one; after each the replica must be a
# consistent cut, and the same as the image if there is one. The origin is slow to write, so that at each T0 many writes
# are in flight. Arguments: the modes to run (all).
. /presnap/lib.sh
load
D=$(serial_disk origin) R=$(serial_disk region) C=$(serial_disk replica) O=/dev/mapper/slow
dmsetup create slow --table "0 $(sectors "$D") delay $D 0 0 $D 0 80 $D 0 0"
SIZE=$(blockdev --getsize64 "$O")
cat >/tmp/snap <<'X'
#!/bin/bash
# Takes snapshot number $1, prints its id when it has been sealed. Each scope comes after each.
case $(($1 % 4)) in 2 | 3) scope=delta ;; *) scope=image ;; esac
id=$(presnap snapshot p --scope $scope --within 200ms) || exit 1
dmsetup message p 0 state "$id" >>/tmp/states
echo "$id"
X
cat >/tmp/send <<'X'
#!/bin/bash
# Brings the replica from snapshot $2 (nothing at first) to snapshot $1, compares it with the image, prints its path.
set -e -o pipefail
if [ -n "$2" ]; then
	presnap send p "$1" --base "$2" | presnap receive -q "$REPLICA"
else
	presnap send p "$1" | presnap receive -q --force "$REPLICA"
fi
if grep -q "^$1 .* scope=image" /tmp/states; then
	presnap image p "$1" "v$1" >&2
	if cmp -n "$SIZE" "/dev/mapper/v$1" "$REPLICA" >&2; then echo "$1" >>/tmp/same; else echo "$1" >>/tmp/differs; fi
	presnap image --remove "v$1" >&2
fi
echo "$REPLICA"
X
cat >/tmp/done <<'X'
#!/bin/bash
# Removes all snapshots up to $1. The replica holds it, so that it remains the base of the next.
echo "$1" >/tmp/last
dmsetup message p 0 list | while read -r id _; do
	[ "$id" = - ] || [ "$id" -gt "$1" ] || { dmsetup message p 0 delete "$id" && sleep 0.1; }
done
X
chmod +x /tmp/snap /tmp/send /tmp/done
only=" $* "
# On a slow kernel half as many.
N=${N:-$((${SLOW:-1} > 1 ? 4 : 8))}
# deltas NAME KNOB=VALUE...
deltas() {
	local name=$1 word s id n=$N
	shift
	case $only in "  " | *" $name "*) ;; *) return 0 ;; esac
	presnap format --origin "$O" "$R" --force >/dev/null 2>&1
	dmsetup create p --table "0 $(sectors "$O") presnap $O $R"
	s=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
	for word in "$@"; do echo "${word#*=}" >"$s/${word%%=*}"; done
	for word in states same differs; do : >/tmp/$word; done
	if ! REPLICA=$C SIZE=$SIZE presnap-torture --device /dev/mapper/p --seconds "${S:-12}" --seed "${SEED:-1}" --threads 8 \
		--snapshots "$n" --snapshot-cmd "/tmp/snap {n}" --verify-cmd "/tmp/send {id} {prev}" --done-cmd "/tmp/done {id}" \
		>/tmp/torture.log 2>&1 || [ -s /tmp/differs ]; then
		tail -60 /tmp/torture.log
		die "deltas with $name; images that are not the same as the replica: $(tr '\n' ' ' </tmp/differs)"
	fi
	tail -1 /tmp/torture.log
	# The sum of all deltas, against the origin at rest.
	id=$(/tmp/snap 2 2>/tmp/rest.log) && REPLICA=$C /tmp/send "$id" "$(cat /tmp/last)" >/dev/null 2>>/tmp/rest.log || { cat /tmp/rest.log; die "$name: at rest"; }
	cmp -n "$SIZE" /dev/mapper/p "$C" || die "$name: the replica is not the same as the origin at rest"
	# Without images compared and writes waited for, nothing was shown.
	eq "$(wc -l </tmp/same)" "$(grep -c scope=image /tmp/states)" "images compared"
	tr ' ' '\n' </tmp/states | sed -n 's/inflight_wait_us=//p' | sort -n >/tmp/waits
	[ "$(awk '$1 >= 1000' /tmp/waits | wc -l)" -ge $((n / 2)) ] || die "$name: no writes in flight at T0: $(tr '\n' ' ' </tmp/waits)"
	note "waited for writes in flight (us): $(tr '\n' ' ' </tmp/waits)"
	note "staged valid $(cat "$s/stats/staged_valid_blocks"), mirrored $(cat "$s/stats/mirrored_writes"), guarded $(cat "$s/stats/guarded_blocks"), drained $(cat "$s/stats/drained_blocks")"
	dmsetup remove p
	ok "$name"
}
deltas off predictor=off
deltas ewma-mirrored predictor=ewma tick_ms=50 horizon_ms=500 threshold_permille=1000 mirror=force lead_ms=1000
result "$N snapshots a mode"
