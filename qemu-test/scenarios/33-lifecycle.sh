# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region 64M:origin2 64M:region2
# timeout: 300
# cost: 40
# Suspend, reload, remove, unload and reopen, under load and in the middle of things; two devices; images that cannot be.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region) O2=$(serial_disk origin2) R2=$(serial_disk region2)
N=$(sectors "$O")
presnap format --origin "$O" "$R" --force >/dev/null 2>&1
presnap format --origin "$O2" "$R2" --force >/dev/null 2>&1
create() { dmsetup create p --table "0 $N presnap $O $R"; }
state_is() { dmsetup message p 0 state "$1" | grep -q "^$1 $2"; }
snap() { # takes a snapshot of p and waits for it
	id=$(dmsetup message p 0 snapshot)
	wait_for 20 state_is "$id" sealed
}
flags() { dmsetup status p | awk '{print $NF}'; }
fill() { dd if=/dev/urandom of="/dev/mapper/$1" bs=1M count="$2" seek="${3:-0}" oflag=direct status=none; }
load_on() { # load_on SECONDS: writers that verify what they wrote, in the background; returns when they write
	local op
	op=$(cat /sys/block/dm-0/presnap/op)
	fio --name=w --filename=/dev/mapper/p --rw=randrw --bs=4k --size=16M --direct=1 --ioengine=libaio --iodepth=16 \
		--time_based --runtime="$1" --verify=crc32c --verify_backlog=256 >/tmp/fio.log 2>&1 &
	fio=$!
	wait_for 30 sh -c "[ \$(cat /sys/block/dm-0/presnap/op) -gt $((op + 100)) ]"
}

# Under load: suspend and resume, with and without flushing, reloads that change a feature, snapshots in between.
create
load_on 8
for i in 1 2 3; do
	sleep 0.3
	dmsetup suspend p
	dmsetup resume p
	dmsetup suspend --noflush --nolockfs p
	dmsetup resume p
	case $i in
	1) features=' 2 scope image' scope=image ;;
	2) features=' 4 scope delta on_error fail-writes' scope=delta ;;
	3) features='' scope=delta ;;
	esac
	dmsetup reload p --table "0 $N presnap $O $R$features"
	dmsetup resume p
	case "$(dmsetup table p)" in *"$features") ;; *) die "table: $(dmsetup table p), not $features" ;; esac
	eq "$(cat /sys/block/dm-0/presnap/scope)" "$scope" "scope after reload $i"
	snap
	dmsetup message p 0 state "$id" | grep -q "scope=$scope" || die "snapshot $id is not of scope $scope"
done
# A reload that is refused, and one that is thrown away, change nothing.
expect_fail -m "Unrecognised feature" dmsetup reload p --table "0 $N presnap $O $R 2 colour red"
dmsetup reload p --table "0 $N presnap $O $R 2 scope image"
dmsetup clear p
snap
wait "$fio" || { cat /tmp/fio.log; die "fio failed"; }
dmsetup message p 0 list
ok "suspend, resume and reload under load"

# In use: neither the device nor the module goes.
exec 5</dev/mapper/p
expect_fail -m "busy" dmsetup remove p
exec 5<&-
if rmmod dm_presnap 2>/tmp/said; then die "the module went away under a device"; fi
grep -qi 'in use\|unavailable' /tmp/said || die "rmmod: $(cat /tmp/said)"
dd if=/dev/urandom of=/dev/mapper/p bs=4k count=1 oflag=direct status=none
op=$(cat /sys/block/dm-0/presnap/op) dirty=$(cat /sys/block/dm-0/presnap/dirty_blocks)
dmsetup remove p
presnap check --data "$R" >/dev/null 2>&1
rmmod dm_presnap
load
create
[ "$(cat /sys/block/dm-0/presnap/op)" = "$op" ] || die "operation $(cat /sys/block/dm-0/presnap/op) after a clean close at $op"
eq "$(dmsetup message p 0 list | cut -d' ' -f1 | tr '\n' ' ')" "1 2 3 4 " "snapshots after reopening"
eq "$(flags)" - "flags after a close with changes since the last snapshot"
[ "$(cat /sys/block/dm-0/presnap/dirty_blocks)" = "$dirty" ] || die "$(cat /sys/block/dm-0/presnap/dirty_blocks) blocks changed after reopening, $dirty before"
dd if=/dev/urandom of=/dev/mapper/p bs=4k count=1 oflag=direct status=none
[ "$(cat /sys/block/dm-0/presnap/op)" = $((op + 1)) ] || die "the operation number does not go on"
snap
[ "$id" -gt 4 ] || die "an id was used again: $id"
dmsetup message p 0 state "$id" | grep -q ' base=4 ' || die "the delta over a close: $(dmsetup message p 0 state "$id")"
base=$id
eq "$(flags)" - "flags after a snapshot"
dmsetup remove p
create
eq "$(flags)" - "flags after a close without changes since the last snapshot"
dd if=/dev/urandom of=/dev/mapper/p bs=4k count=1 seek=9 oflag=direct status=none
snap
dmsetup message p 0 state "$id" | grep -q " base=$base .* delta_blocks=1 " || die "the delta after an orderly close: $(dmsetup message p 0 state "$id")"
sealed=$id
ok "reopening after an orderly close"

# Removed while a snapshot is being taken: it is gone, what was sealed stays, and its changes belong to the next delta.
fill p 48
id=$(dmsetup message p 0 snapshot)
dmsetup remove p
presnap check --data "$R" >/dev/null 2>&1
create
dmsetup message p 0 list >/tmp/list
if grep -q "^$id sealed" /tmp/list; then
	note "the snapshot was sealed before the removal"
else
	eq "$(dmsetup message p 0 state "$id")" "$id unknown" "state of the snapshot that was cut short"
	# All that was written is part of the next delta; if there was no room to say exactly what, more. What was preserved for
	# images that were lost for want of room may fill the region: then, and only then, that is said too.
	flags=$(flags) used=$(cat /sys/block/dm-0/presnap/used_slots) total=$(cat /sys/block/dm-0/presnap/total_slots)
	grep -Eq '^(-|low-water|superset:[0-9]+(,low-water)?)$' <<<"$flags" || die "flags after a snapshot that was cut short: $flags"
	case $flags in *low-water*) [ $((used * 10)) -ge $((total * 9)) ] || die "$flags, and $used of $total slots are in use" ;; esac
	[ "$(cat /sys/block/dm-0/presnap/dirty_blocks)" -ge 12288 ] || die "changes are lost with the snapshot: $(cat /sys/block/dm-0/presnap/dirty_blocks)"
fi
grep -q "^$sealed sealed" /tmp/list || die "snapshot $sealed is gone: $(cat /tmp/list)"
dmsetup message p 0 snapshot within 60000 >/tmp/id
[ "$(cat /tmp/id)" -gt "$id" ] || die "an id was used again: $(cat /tmp/id)"
# And with a snapshot that waits for its time.
dmsetup remove p
create
ok "removed in the middle of a snapshot"

# remove --force: the error target takes its place, also under load and in the middle of a snapshot.
load_on 20
dmsetup message p 0 snapshot >/dev/null
timeout 20 dmsetup remove --force p || :
if wait "$fio"; then
	cat /tmp/fio.log
	die "fio has not noticed the removal"
fi
wait_for 10 sh -c '! dmsetup info p || dmsetup remove p'
presnap check --data "$R" >/dev/null 2>&1
create
dmsetup remove p
ok "remove --force under load"

# Given up as soon as it is made, because the next line of the table is refused, while the CPUs have other things to do: the
# worker may not have begun, and the region has to be closed all the same.
printf '0 %s presnap %s %s\n%s 8 error nothing 0\n' "$N" "$O" "$R" "$N" >/tmp/table
hogs=()
for i in 1 2 3 4; do
	(while :; do :; done) &
	hogs+=($!)
done
log_mark
for i in 1 2 3 4 5 6; do
	if dmsetup create p /tmp/table 2>/dev/null; then die "a table with a bad line was loaded"; fi
done
kill "${hogs[@]}"
wait "${hogs[@]}" || :
create
dmsetup remove p
log_since >/tmp/said
if grep 'not closed in order' /tmp/said; then die "a table that was given up left its region open"; fi
ok "given up at once"

# Two devices: each its own numbers, files and region.
presnap format --origin "$O" "$R" --force >/dev/null 2>&1
create
dmsetup create q --table "0 $N presnap $O2 $R2 2 scope image"
[ -d /sys/block/dm-0/presnap ] && [ -d /sys/block/dm-1/presnap ] || die "not both have files"
echo age >/sys/block/dm-1/presnap/predictor
eq "$(cat /sys/block/dm-0/presnap/predictor)" ewma "the predictor of the other one"
changed=$(cat /sys/block/dm-0/presnap/dirty_blocks)
fill q 2
eq "$(cat /sys/block/dm-1/presnap/dirty_blocks)" 512 "dirty blocks of q"
eq "$(cat /sys/block/dm-0/presnap/dirty_blocks)" "$changed" "dirty blocks of p"
eq "$(dmsetup message q 0 snapshot)" 1 "the first id of q"
snap
expect_fail -m "Region is in use by another presnap device" dmsetup reload p --table "0 $N presnap $O $R2"
expect_fail -m "Region is in use by another presnap device" dmsetup create r --table "0 $N presnap /dev/mapper/q $R"
wait_for 20 sh -c 'dmsetup message q 0 state 1 | grep -q sealed'
ok "two devices"

# Images: bad lines, no writing, and what happens to them when their device goes.
image() { dmsetup create v --readonly --table "0 $N presnap-image $*"; }
badi() {
	local words=$1
	shift
	expect_fail -m "$words" image "$@"
}
sha() { dd if="$1" bs=1M iflag=direct status=none | sha256sum; }
badi "requires 2 arguments: <presnap device> <snapshot id>" /dev/mapper/q
badi "requires 2 arguments: <presnap device> <snapshot id>" /dev/mapper/q 1 2
for id in 0 -1 x 1x 4294967296; do badi "Invalid snapshot id" /dev/mapper/q $id; done
badi "Cannot get presnap device" /dev/mapper/nothing 1
badi "Not a presnap device" "$O" 1
badi "There is no such snapshot" /dev/mapper/q 7
id=$(dmsetup message p 0 list | tail -n 1 | cut -d' ' -f1)
badi "The snapshot has scope delta: there is no image of it" /dev/mapper/p "$id"
expect_fail -m "The image is smaller than the target" dmsetup create v --readonly --table "0 $((N + 8)) presnap-image /dev/mapper/q 1"
before=$(sha "$O2")
image /dev/mapper/q 1
q=$(lsblk -dno MAJ:MIN /dev/mapper/q | tr -d ' ')
eq "$(dmsetup table v)" "0 $N presnap-image $q 1" "table of an image"
eq "$(dmsetup status v)" "0 $N presnap-image ro" "status of an image"
expect_fail dd if=/dev/zero of=/dev/mapper/v bs=4k count=1 oflag=direct
expect_fail blkdiscard -o 0 -l 4096 /dev/mapper/v
dmsetup remove v
# Made read-write, it still takes no write.
dmsetup create v --table "0 $N presnap-image $q 1"
expect_fail dd if=/dev/zero of=/dev/mapper/v bs=4k count=1 oflag=direct
expect_fail blkdiscard -z -o 0 -l 4096 /dev/mapper/v
changed=$(cat /sys/block/dm-0/presnap/dirty_blocks)
fill q 2
eq "$(sha /dev/mapper/v)" "$before" "the image after overwrites and refused writes"
expect_fail -m "the snapshot is held" dmsetup message q 0 delete 1
expect_fail -m "the snapshot is not held" dmsetup message q 0 release 1
# Without its device nobody keeps it: it says so, and reads nothing wrong.
dmsetup remove q
eq "$(dmsetup status v)" "0 $N presnap-image Invalid" "status of an image whose device is gone"
expect_fail dd if=/dev/mapper/v of=/dev/null bs=4k count=1 iflag=direct
dmsetup remove v
dmsetup create q --table "0 $N presnap $O2 $R2"
image /dev/mapper/q 1
eq "$(sha /dev/mapper/v)" "$before" "the image after its device was closed and opened"
dmsetup remove v
dmsetup message q 0 delete 1
dmsetup remove q
dmsetup remove p
presnap check --data "$R2" >/dev/null 2>&1
rmmod dm_presnap
ok "images"
