# SPDX-License-Identifier: GPL-2.0-only
# One life of the VM that qemu-test/killed kills: checks what the last one left, then works until it is killed, which is
# when a snapshot has been sent, and a little later.
# Arguments: first|next, a seed. On the disk `kept` lies what had been promised, durable before it counts.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region) K=$(serial_disk kept) P=/dev/mapper/p
export REPLICA; REPLICA=$(serial_disk replica)
N=$(sectors "$O") HALF=$((2 * 2048))
mkdir -p /k /tmp/m
# keep NAME WORDS: durable when it returns
cat >/tmp/keep <<'X'
#!/bin/bash
echo "${@:2}" >"/k/$1.$$" && sync "/k/$1.$$" && mv "/k/$1.$$" "/k/$1" && sync /k
X
chmod +x /tmp/keep
kept() { cat "/k/$1" 2>/dev/null || echo "$2"; }
device() {
	dmsetup create p --table "0 $N presnap $O $R" || die "it does not open: $(dmesg | tail -n 5)"
	S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
	for word in predictor=ewma tick_ms=50 horizon_ms=500 intent_clean_ms=300; do echo "${word#*=}" >"$S/${word%%=*}"; done
	dmsetup create --concise "a,,,rw,0 $HALF linear $P 0;b,,,rw,0 $((N - HALF)) linear $P $HALF"
}
if [ "$1" = first ]; then
	mkfs.ext4 -q -E lazy_itable_init=0,nodiscard -J size=4 "$K"
	mount "$K" /k
	mkdir /k/replicas /k/record
	: >/k/sealed
	dd if=/dev/urandom of=/k/noise bs=1M count=3 status=none
	sync -f /k
	presnap format --origin "$O" "$R" --force >/dev/null 2>&1
	device
	mkfs.ext4 -q -E lazy_itable_init=0,nodiscard -b 1024 -N 64 -J size=1 /dev/mapper/b
else
	mount "$K" /k
	presnap check --data "$R" >/tmp/check 2>&1 || { cat /tmp/check; die "presnap check"; }
	device
	dmsetup message p 0 list >/tmp/list
	# Reported, and not deleted since.
	deleting=$(kept deleting 0) deleted=$(kept deleted 0) newest=0
	while read -r id; do
		newest=$id
		[ "$id" -le "$deleting" ] || grep -q "^$id sealed" /tmp/list || die "snapshot $id, which was sealed, is gone: $(cat /tmp/list)"
	done </k/sealed
	[ "$deleted" = 0 ] || awk -v d="$deleted" '$1 != "-" && $1 <= d {exit 1}' /tmp/list || die "a snapshot up to $deleted, deleted, is back: $(cat /tmp/list)"
	op=$(cat "$S/op")
	[ "$op" -ge "$(kept op 0)" ] || die "operation number $op, it was $(kept op 0)"
	read -r _ _ _ _ _ _ _ _ _ mode flags <<<"$(dmsetup status p)"
	[ "$mode" = rw ] || die "the status: $(dmsetup status p)"
	images=0
	while read -r id _ scope _; do
		[ "$scope" = image ] && [ -e "/k/replicas/$id" ] || continue
		presnap image p "$id" v >/dev/null
		cmp /dev/mapper/v "/k/replicas/$id" || die "image $id is not what it was"
		presnap image --remove v
		images=$((images + 1))
	done </tmp/list
	# What the replica holds; a receive that was cut off is completed by the next.
	record=/k/record/replica holds=0
	if [ -e $record ]; then
		read -r holds receiving <<<"$(od -An -t u4 -j 40 -N 8 $record)"
		[ "$receiving" = 0 ] || [ ! -e $record.spool ] || holds=$receiving
	fi
	if [ "$newest" != 0 ]; then
		case $flags in *full-needed*) die "after snapshot $newest: $(dmsetup status p)" ;; esac
	fi
	id=$(presnap snapshot p --scope image)
	state=$(dmsetup message p 0 state "$id")
	if [ "$holds" != 0 ]; then
		presnap send p "$id" --base "$holds" 2>/dev/null | presnap receive -q --record $record "$REPLICA" || die "snapshot $id to $holds: $(cat /tmp/list)"
		cmp "$P" "$REPLICA" || die "snapshot $id, as a delta to $holds, is not what the device is"
	else
		presnap send p "$id" 2>/dev/null | presnap receive -q --force --record $record "$REPLICA"
	fi
	dd if="$REPLICA" of="/k/replicas/$id.new" bs=1M conv=fsync status=none
	mv "/k/replicas/$id.new" "/k/replicas/$id"
	sync /k/replicas
	echo "$id" >>/k/sealed
	sync /k/sealed
	mount /dev/mapper/b /tmp/m || die "the file system does not mount"
	if [ "$(kept fs 0)" != 0 ]; then
		round=$(cat /tmp/m/round)
		[ "$round" -ge "$(kept fs 0)" ] || die "round $round of the file system, not $(kept fs 0)"
		cmp -n 65536 -i 0:$((round * 13 % 512 * 4096)) /tmp/m/file$((round % 8)) /k/noise || die "the file of round $round"
	fi
	umount /tmp/m
	e2fsck -fn /dev/mapper/b >/tmp/fsck 2>&1 || { cat /tmp/fsck; die "e2fsck"; }
	echo; note "$(wc -l </tmp/list) snapshots, $images images compared, op $op"
	ok "what was left"
fi

cat >/tmp/mark <<X
#!/bin/bash
read -r op <$S/op
/tmp/keep op \$op
X
cat >/tmp/snap <<'X'
#!/bin/bash
case $(($1 % 4)) in 2 | 3) scope=delta ;; *) scope=image ;; esac
id=$(presnap snapshot p --scope $scope --within 100ms) || exit 1
echo "$id" >>/k/sealed && sync /k/sealed
dmsetup message p 0 state "$id" >>/tmp/states
echo "$id"
X
cat >/tmp/send <<'X'
#!/bin/bash
# The first one follows the one that the check took.
set -e -o pipefail
R=/k/record/replica
holds=0
[ ! -e $R ] || holds=$(od -An -t u4 -j 40 -N 4 $R | tr -d ' ')
if [ "$holds" != 0 ]; then
	presnap send p "$1" --base "$holds" | presnap receive -q --record $R "$REPLICA"
else
	presnap send p "$1" | presnap receive -q --force --record $R "$REPLICA"
fi
dd if="$REPLICA" of="/k/replicas/$1.new" bs=1M conv=fsync status=none
mv "/k/replicas/$1.new" "/k/replicas/$1" && sync /k/replicas
touch /tmp/sent
echo "$REPLICA"
X
cat >/tmp/done <<'X'
#!/bin/bash
dmsetup message p 0 list | head -n -2 | while read -r id _; do
	/tmp/keep deleting "$id"
	rm -f "/k/replicas/$id"
	dmsetup message p 0 delete "$id"
	while dmsetup message p 0 list | grep -q "^$id "; do sleep 0.02; done
	/tmp/keep deleted "$id"
done
X
chmod +x /tmp/mark /tmp/snap /tmp/send /tmp/done
/tmp/done
mount /dev/mapper/b /tmp/m
(
	trap - ERR
	n=$(kept fs 0)
	while :; do
		n=$((n + 1))
		dd if=/k/noise of=/tmp/m/file$((n % 8)) bs=4k count=16 skip=$((n * 13 % 512)) conv=fsync status=none &&
			echo $n >/tmp/m/round.new && sync /tmp/m/round.new && mv /tmp/m/round.new /tmp/m/round && sync -f /tmp/m && /tmp/keep fs $n || die "the file system's writer"
		sleep 0.3
	done
) &
(
	until [ -e /tmp/sent ]; do sleep 0.1; done
	echo "### crash"
) &
presnap-torture --device /dev/mapper/a --seconds 60 --seed "$2" --threads 2 --pause-us 10000 --mark-ms 500 --snapshots 40 --snapshot-cmd "/tmp/snap {n}" \
	--verify-cmd "/tmp/send {id}" --done-cmd /tmp/done --mark-cmd /tmp/mark --history /dev/null >/tmp/torture.log 2>&1 || {
	tail -20 /tmp/torture.log
	die "the load"
}
die "nobody has killed the VM"
