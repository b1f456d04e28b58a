# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region
# timeout: 120
# cost: 20
# Durable intent: what a first write costs, that streams are written without waiting, that an idle device is left in peace, and
# what passes for changed after a crash, a close and another crash.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region)
null_blk was 64M
N=$(sectors "$O")
S=/sys/block/dm-0/presnap
create() { dmsetup create p --table "0 $N presnap $O $R"; }
stat() { cat "$S/stats/$1"; }
flags() { dmsetup status p | awk '{print $NF}'; }
# put EXTENT COUNT: so many blocks at the start of an extent of 256 KiB
put() { dd if=/dev/urandom of=/dev/mapper/p bs=4k count="$2" seek=$(($1 * 64)) oflag=direct status=none; }
# crash: the region is what it would be if the power failed now
crash() {
	dd if="$R" of=/dev/was bs=1M iflag=direct oflag=direct status=none
	dmsetup remove p
	dd if=/dev/was of="$R" bs=1M iflag=direct oflag=direct status=none
	create
}
presnap format --origin "$O" "$R" --force >/dev/null 2>&1
create

# Far from each other: each first write waits for one write to the region, and no other does.
echo 86400000 >"$S/intent_clean_ms"
for ((i = 0; i < 32; i++)); do put $((i * 8)) 1; done
eq "$(stat intent_waits)" 32 "first writes that waited"
eq "$(stat intent_demanded)" 32 "extents asked for"
writes=$(stat intent_writes)
[ "$writes" -le 34 ] || die "$writes writes for the intent of 32 extents"
for ((i = 0; i < 32; i++)); do put $((i * 8)) 3; done
eq "$(stat intent_waits)" 32 "writes that waited after the first ones"
ok "32 first writes: 32 waits, $writes writes to the region"

# One after the other: what follows is there before it is written.
echo stream >"$S/predictor"
echo 50 >"$S/tick_ms"
before=$(stat intent_waits) first=$(stat intent_premarked)
fio --name=s --filename=/dev/mapper/p --rw=write --bs=64k --offset=33m --size=30m --direct=1 --rate=6m >/tmp/fio.log || { cat /tmp/fio.log; die fio; }
waits=$(($(stat intent_waits) - before)) marked=$(($(stat intent_premarked) - first))
echo 10 >"$S/intent_clean_ms"
wait_for 10 sh -c "[ \$(cat $S/stats/intent_premarked_used) -gt 0 ]"
# 120 extents, 15 of which have been written before.
[ "$waits" -le 20 ] || die "$waits of 105 first writes of a stream waited ($marked extents were there before)"
[ "$(stat intent_premarked_used)" -ge 80 ] || die "only $(stat intent_premarked_used) of $marked extents were there before, and written"
ok "a stream: $waits of 105 first writes waited"

# Nobody writes: what the predictor still expects is not said again and again.
sleep 1
a=$(stat intent_writes)
sleep 2
b=$(stat intent_writes)
[ $((b - a)) -le 2 ] || die "$((b - a)) writes for the intent of an idle device"
ok "an idle device: $((b - a)) writes for its intent"

# A crash: the whole extents pass for changed, and it says how much that may be too much.
presnap snapshot p >/dev/null 2>&1
echo off >"$S/predictor"
echo 86400000 >"$S/intent_clean_ms"
eq "$(flags)" - "before"
put 3 1
put 40 2
eq "$(cat "$S/dirty_blocks")" 3 "dirty blocks"
crash
eq "$(flags)" superset:128 "after the crash"
eq "$(cat "$S/superset_blocks")" 128 superset_blocks
eq "$(cat "$S/dirty_blocks")" 128 "dirty blocks after the crash"
# It is closed in order: pages of the dirty map take the place of intent, and it is still so.
dmsetup remove p
create
eq "$(flags)" superset:128 "after the close"
echo 86400000 >"$S/intent_clean_ms"
put 50 1
crash
eq "$(flags)" superset:192 "after another crash"
# Intent that is cleaned away, and a crash.
echo 10 >"$S/intent_clean_ms"
wait_for 10 sh -c "[ \$(cat $S/intent_extents) = 0 ]"
crash
[ "$(flags)" = superset:192 ] || die "after a crash without intent: $(flags)"
newest() { dmsetup message p 0 list | awk '$1 != "-" {id = $1} END {print id}'; }
presnap snapshot p >/dev/null 2>&1
presnap show p "$(newest)" >/tmp/show
grep -q superset /tmp/show || die "the snapshot does not say that it may hold more: $(cat /tmp/show)"
eq "$(flags)" - "after the snapshot"
presnap snapshot p >/dev/null 2>&1
presnap show p "$(newest)" >/tmp/show
if grep -q superset /tmp/show; then die "the next snapshot: $(cat /tmp/show)"; fi
dmsetup remove p
create
eq "$(flags)" - "after the last close"
dmsetup remove p
presnap check --data "$R" >/dev/null 2>&1 || die "the region"
ok "superset: said until the next snapshot, over closes and crashes"
