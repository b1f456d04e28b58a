# SPDX-License-Identifier: GPL-2.0-only
# nvme: 4M:origin 16M:region
# kernel: debug
# file: qemu-test/inject.sh
# file: qemu-test/blobs:/presnap/blobs
# timeout: 900
# allow: page allocation failure|kmemleak: Cannot allocate a scan area
# Every allocation of what can be asked of a live device fails once: models, views, messages, files in sysfs, records, suspend, reload. What fails says
# so and changes nothing, and works when tried again.
. /presnap/lib.sh
load
. /presnap/inject.sh
of_module
O=$(serial_disk origin) R=$(serial_disk region)
N=$(sectors "$O")
dd if=/dev/urandom of="$O" bs=1M count=$(($(sectors "$O") / 2048)) oflag=direct status=none
dd if="$O" of=/tmp/want bs=1M iflag=direct status=none
presnap format --origin "$O" "$R" --force >/dev/null 2>&1
dmsetup create p --table "0 $N presnap $O $R"
S=/sys/block/dm-0/presnap
# refused: what failed, failed for want of memory
refused() { [[ $said == *'annot allocate memory'* ]]; }
# table_words TARGET: a table that could not be loaded says why
table_words() { [[ $log == *"device-mapper: table: "*": $1: "*" (-"* ]] && [[ $log != *'Unknown error'* ]]; }
# fresh: a device that has had no model yet
fresh() {
	dmsetup remove p
	dmsetup create p --table "0 $N presnap $O $R"
}

# cat tries again by another system call, from where the first one was.
copy() { dd if="$1" of="$2" bs=64k conv=notrunc status=none; }
upload() { copy /presnap/blobs/mlp.psm $S/model/blob && echo 1 >$S/model/commit; }
uploaded() {
	if [ "$1" = 0 ]; then
		grep -q '^mlp ' $S/model/state
	else
		refused && grep -qx none $S/model/state && upload && grep -q '^mlp ' $S/model/state
	fi
}
one_by_one "uploading a model" fresh upload uploaded
# Large arrays may be made of pages instead: all of it fails.
fresh
starve
rc=0
upload >/tmp/said 2>&1 || rc=$?
feed
said=$(</tmp/said)
[ $rc != 0 ] && uploaded $rc || die "uploading a model without any memory: $said; $(cat $S/model/state)"
ok "uploading a model without any memory"
with_model() {
	fresh
	upload
}
vectors() {
	rm -f /tmp/answers
	copy /presnap/blobs/vectors $S/model/vectors && copy $S/model/vectors /tmp/answers
}
answered() {
	[ "$1" = 0 ] || { refused && vectors; } || return 1
	cmp /tmp/answers /presnap/blobs/mlp.answers
}
one_by_one "evaluating vectors" with_model vectors answered

dd if=/tmp/want of=/dev/mapper/p bs=64k count=4 oflag=direct conv=notrunc status=none
id=$(dmsetup message p 0 snapshot scope image)
wait_for 20 sh -c "dmsetup message p 0 state $id | grep -q sealed"
view() { dmsetup create v --readonly --table "0 $N presnap-image /dev/mapper/p $id"; }
viewed() {
	[ "$1" = 0 ] || {
		table_words presnap-image || return 1
		# It holds nothing: what is not held could be deleted.
		view
	} || return 1
	cmp /dev/mapper/v /tmp/want || return 1
	dmsetup remove v
	dmsetup message p 0 hold "$id" && dmsetup message p 0 release "$id"
}
one_by_one "making a view" - view viewed

messages() {
	local new
	message list && message hold "$id" && message release "$id" || return 1
	new=$(message snapshot scope delta) || return 1
	until [[ $(message state "$new") =~ sealed|dropped ]]; do nap 0.05; done
	state=$(message state "$new") && message sync && message abort || return 1
	! message gibberish || return 1
	old=$id id=$new
	message delete "$old"
}
asked() {
	[ "$1" = 0 ] || return 1
	[[ $state == *' sealed '* ]] || { why="state: $state" && return 1; }
	gone "$old" || return 1
	[ "$(message list | cut -d' ' -f1)" = "$id" ] || { why="list: $(message list)" && return 1; }
}
dd if=/tmp/want of=/dev/mapper/p bs=64k count=4 oflag=direct conv=notrunc status=none
EACH=${EACH:-12} GROW=${GROW:-1} one_by_one "messages" - messages asked

sysfs() {
	local f
	for f in $S/* $S/stats/*; do
		[ ! -f "$f" ] || cat "$f" || return 1
	done
	echo age >$S/predictor && echo 100 >$S/tick_ms && ! echo 1 >$S/tick_ms
}
read_all() { [ "$1" = 0 ] || refused; }
# What sysfs itself allocates is not on our behalf: this may be none.
arm 1
sysfs >/tmp/said 2>&1 || die "sysfs: $(cat /tmp/said)"
disarm
if [ $fired = 1 ]; then
	one_by_one "files in sysfs" - sysfs read_all
else
	resync
	ok "files in sysfs: nothing is allocated on behalf of the module"
fi

records() {
	exec 3<>/dev/presnap || return 1
	cat /sys/block/dm-0/dev >&3 || return 1
	dd if=/dev/mapper/p of=/dev/null bs=64k count=1 iflag=direct status=none || return 1
	[ "$(dd bs=4096 count=1 <&3 2>/dev/null | wc -c)" -gt 0 ] || return 1
	exec 3>&-
}
# In a process of its own: a redirection of exec that fails ends the shell.
recorded_in() { (trap - ERR; records); }
recorded() { [ "$1" = 0 ] || { refused && recorded_in; }; }
one_by_one "records" - recorded_in recorded

resume() { dmsetup suspend p && dmsetup resume p; }
resumed() {
	[ "$1" = 0 ] || return 1
	if [ ! -e $S/stats/hits ] || [ ! -e $S/model/commit ]; then
		[[ $log == *'cannot make the files in sysfs'* ]] || return 1
		resume || return 1
		[ -e $S/stats/hits ] && [ -e $S/model/commit ] || return 1
	fi
	dd if=/tmp/want of=/dev/mapper/p bs=64k count=1 oflag=direct conv=notrunc status=none
}
one_by_one "suspend and resume" - resume resumed

reload() { dmsetup reload p --table "0 $N presnap $O $R 2 scope image" && dmsetup resume p; }
reloaded() {
	[ "$1" = 0 ] || {
		table_words presnap || return 1
		dmsetup table p | grep -q presnap || return 1
		reload || return 1
	}
	dmsetup table p | grep -q 'scope image' || return 1
	# Back, so that the next one changes something.
	dmsetup reload p --table "0 $N presnap $O $R" && dmsetup resume p && [ -e $S/stats/hits ]
}
one_by_one "a reload" - reload reloaded

dmsetup remove p
cmp "$O" /tmp/want || die "the origin has changed"
dmsetup create p --table "0 $N presnap $O $R"
dmsetup message p 0 list | grep -q "^$id " || die "the snapshot is gone"
dmsetup remove p
leaks_here "control"
result "$injected allocation failures injected"
