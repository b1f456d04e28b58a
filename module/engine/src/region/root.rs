// SPDX-License-Identifier: GPL-2.0-only

//! The root: the table of snapshots and the numbers that must not be handed out twice.
//!
//! It is small (32 KiB) and written whole, to its two copies in turn; the newer valid one counts. In memory it
//! is a [`Root`] over storage of the caller, because 32 KiB have no place on a kernel stack.

use crate::geometry::BLOCK_SECTORS;
use core::ops::DerefMut;

use super::bytes::{is_zero, put_u32, Reader, Writer};
use super::{has_room, pick_newer, Fault, FormatError, Limits, Part, Picked, NO_SLOT};
use crate::crc32c::with_hole;

/// Bytes of the root: 8 blocks.
pub const ROOT_BYTES: usize = 32 * 1024;
/// Snapshots that a root can hold.
pub const MAX_SNAPSHOTS: usize = 120;
/// The first bytes of a root.
pub const ROOT_MAGIC: [u8; 8] = *b"PRESROOT";
/// Version of the root.
pub const ROOT_VERSION: u32 = 2;
/// Bytes of a snapshot record.
pub const SNAPSHOT_BYTES: usize = 256;

const HEADER_BYTES: usize = ROOT_BYTES - MAX_SNAPSHOTS * SNAPSHOT_BYTES;
/// Offset of the checksum.
const CRC_AT: usize = 12;

/// Operation numbers reserved ahead: after a crash, numbering goes on behind them.
pub const OP_RESERVE: u64 = 1 << 40;

/// Root flag: the target was shut down in order, all that was in memory is on disk.
pub const ROOT_CLEAN: u32 = 1;
/// Root flag: the changes since the last snapshot are not known, the next replication must be full.
pub const ROOT_FULL_NEEDED: u32 = 2;
/// Root flag: there was a crash since the last snapshot, so more may pass for changed than was.
pub const ROOT_AFTER_CRASH: u32 = 4;
const ROOT_FLAGS: u32 = ROOT_CLEAN | ROOT_FULL_NEEDED | ROOT_AFTER_CRASH;

/// Snapshot flag: the delta may contain blocks that were not written.
pub const SNAPSHOT_SUPERSET: u8 = 1;
/// Snapshot flag: the generation contains a crash.
pub const SNAPSHOT_AFTER_CRASH: u8 = 2;

/// Where a snapshot is in its life. The numbers are the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SnapshotState {
    /// Taken; its delta is not whole in the region yet.
    #[default]
    Open = 1,
    /// Its delta is whole and durable, with its manifest.
    Sealed = 2,
    /// Given up or deleted; its slots are being freed.
    Dropped = 3,
}

impl SnapshotState {
    /// Returns the state of a number, `None` if there is no such state.
    pub const fn from_wire(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Open),
            2 => Some(Self::Sealed),
            3 => Some(Self::Dropped),
            _ => None,
        }
    }

    /// Returns its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Sealed => "sealed",
            Self::Dropped => "dropped",
        }
    }
}

/// How long overwrites are guarded. The numbers are the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// Only blocks of the delta, only until it is sealed.
    #[default]
    Delta = 0,
    /// All blocks, as long as the snapshot lives: the image can be read.
    Image = 1,
}

impl Scope {
    /// Returns the scope of a number, `None` if there is no such scope.
    pub const fn from_wire(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Delta),
            1 => Some(Self::Image),
            _ => None,
        }
    }

    /// Returns its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Image => "image",
        }
    }
}

/// A snapshot: its identity, its time and what it cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its number, from 1.
    pub id: u32,
    /// The snapshot before it, 0 if none.
    pub base_id: u32,
    /// Where it is in its life.
    pub state: SnapshotState,
    /// How long overwrites are guarded.
    pub scope: Scope,
    /// The predictor that was active, for information (the number of `PredictorKind`).
    pub predictor: u8,
    /// [`SNAPSHOT_SUPERSET`] | [`SNAPSHOT_AFTER_CRASH`].
    pub flags: u8,
    /// Number of manifest pages; 0 until sealed.
    pub manifest_pages: u32,
    /// Number of chunks in the manifest.
    pub manifest_chunks: u32,
    /// Checksum of the manifest (of the checksums of its pages).
    pub manifest_crc: u32,
    /// Slot of the first manifest page, [`NO_SLOT`] if none.
    pub manifest_head_slot: u32,
    /// First operation of the generation; one more than `op_last` if nothing was written.
    pub op_first: u64,
    /// Last operation of the generation: T0 lies after it.
    pub op_last: u64,
    /// Time of T0, nanoseconds since 1970.
    pub t0_realtime_ns: u64,
    /// How long writers were held.
    pub freeze_ns: u64,
    /// The part of it spent waiting for writes in flight.
    pub inflight_wait_ns: u64,
    /// Time from T0 until sealed.
    pub seal_ns: u64,
    /// Blocks of the delta.
    pub delta_blocks: u64,
    /// Of them, staged before T0 and still valid at T0.
    pub staged_valid_blocks: u64,
    /// Of them, staged and overwritten before T0.
    pub stale_blocks: u64,
    /// Of them, copied while writers were held.
    pub final_copy_blocks: u64,
    /// Blocks preserved because of an overwrite after T0.
    pub guarded_blocks: u64,
    /// Blocks copied in the background after T0.
    pub drained_blocks: u64,
    /// All blocks copied for this snapshot, again and again included.
    pub copied_blocks_total: u64,
    /// Writes that were mirrored to a staged copy.
    pub mirrored_writes: u64,
    /// Clean blocks staged to spare the guard.
    pub staged_clean_blocks: u64,
    /// Predictions that came true.
    pub hits: u64,
    /// Writes that were not predicted.
    pub misses: u64,
    /// Blocks copied in vain.
    pub wasted: u64,
    /// Writes that had to wait for a guard.
    pub guard_stalls: u64,
    /// Sectors of the origin at T0; 0 if that is not known: as many as it has.
    pub origin_sectors: u64,
}

impl SnapshotRecord {
    /// Sectors of the image, of an origin that has `origin_sectors` now.
    pub const fn image_sectors(&self, origin_sectors: u64) -> u64 {
        match self.origin_sectors {
            0 => origin_sectors,
            then => then,
        }
    }

    /// A record of nothing: what unused places of a [`Root`] hold.
    pub const ZERO: Self = Self {
        id: 0,
        base_id: 0,
        state: SnapshotState::Open,
        scope: Scope::Delta,
        predictor: 0,
        flags: 0,
        manifest_pages: 0,
        manifest_chunks: 0,
        manifest_crc: 0,
        manifest_head_slot: NO_SLOT,
        op_first: 0,
        op_last: 0,
        t0_realtime_ns: 0,
        freeze_ns: 0,
        inflight_wait_ns: 0,
        seal_ns: 0,
        delta_blocks: 0,
        staged_valid_blocks: 0,
        stale_blocks: 0,
        final_copy_blocks: 0,
        guarded_blocks: 0,
        drained_blocks: 0,
        copied_blocks_total: 0,
        mirrored_writes: 0,
        staged_clean_blocks: 0,
        hits: 0,
        misses: 0,
        wasted: 0,
        guard_stalls: 0,
        origin_sectors: 0,
    };

    /// Encodes it.
    pub fn encode(&self, out: &mut [u8; SNAPSHOT_BYTES]) {
        let mut w = Writer::new(out);
        w.u32(self.id);
        w.u32(self.base_id);
        w.u8(self.state as u8);
        w.u8(self.scope as u8);
        w.u8(self.predictor);
        w.u8(self.flags);
        w.u32(self.manifest_pages);
        w.u32(self.manifest_chunks);
        w.u32(self.manifest_crc);
        w.u32(self.manifest_head_slot);
        w.u32(0);
        for word in [
            self.op_first,
            self.op_last,
            self.t0_realtime_ns,
            self.freeze_ns,
            self.inflight_wait_ns,
            self.seal_ns,
            self.delta_blocks,
            self.staged_valid_blocks,
            self.stale_blocks,
            self.final_copy_blocks,
            self.guarded_blocks,
            self.drained_blocks,
            self.copied_blocks_total,
            self.mirrored_writes,
            self.staged_clean_blocks,
            self.hits,
            self.misses,
            self.wasted,
            self.guard_stalls,
            self.origin_sectors,
        ] {
            w.u64(word);
        }
        w.zero_rest();
    }

    /// Decodes a record and checks it against itself, the header and the limits.
    pub fn decode(
        bytes: &[u8; SNAPSHOT_BYTES],
        header: &RootHeader,
        limits: &Limits,
    ) -> Result<Self, FormatError> {
        Self::parse(bytes, header, limits).map_err(|f| FormatError::new(Part::Snapshot, f))
    }

    fn parse(
        bytes: &[u8; SNAPSHOT_BYTES],
        header: &RootHeader,
        limits: &Limits,
    ) -> Result<Self, Fault> {
        let mut r = Reader::new(bytes);
        // In the order of the format: struct fields are evaluated as written.
        let (id, base_id) = (r.u32(), r.u32());
        let state = SnapshotState::from_wire(r.u8()).ok_or(Fault::State)?;
        let scope = Scope::from_wire(r.u8()).ok_or(Fault::Scope)?;
        let (predictor, flags) = (r.u8(), r.u8());
        let (manifest_pages, manifest_chunks) = (r.u32(), r.u32());
        let (manifest_crc, manifest_head_slot, reserved) = (r.u32(), r.u32(), r.u32());
        let this = Self {
            id,
            base_id,
            state,
            scope,
            predictor,
            flags,
            manifest_pages,
            manifest_chunks,
            manifest_crc,
            manifest_head_slot,
            op_first: r.u64(),
            op_last: r.u64(),
            t0_realtime_ns: r.u64(),
            freeze_ns: r.u64(),
            inflight_wait_ns: r.u64(),
            seal_ns: r.u64(),
            delta_blocks: r.u64(),
            staged_valid_blocks: r.u64(),
            stale_blocks: r.u64(),
            final_copy_blocks: r.u64(),
            guarded_blocks: r.u64(),
            drained_blocks: r.u64(),
            copied_blocks_total: r.u64(),
            mirrored_writes: r.u64(),
            staged_clean_blocks: r.u64(),
            hits: r.u64(),
            misses: r.u64(),
            wasted: r.u64(),
            guard_stalls: r.u64(),
            origin_sectors: r.u64(),
        };
        if reserved != 0 || !r.rest_is_zero() {
            return Err(Fault::Reserved);
        }
        if id == 0 || id >= header.next_snapshot {
            return Err(Fault::SnapshotId);
        }
        if base_id >= id {
            return Err(Fault::BaseId);
        }
        if flags & !(SNAPSHOT_SUPERSET | SNAPSHOT_AFTER_CRASH) != 0 {
            return Err(Fault::Flags);
        }
        if this.op_last >= header.next_op || this.op_first > this.op_last.saturating_add(1) {
            return Err(Fault::OpRange);
        }
        if this.delta_blocks > limits.origin_blocks {
            return Err(Fault::Block);
        }
        if this.origin_sectors.div_ceil(BLOCK_SECTORS.into()) > limits.origin_blocks {
            return Err(Fault::Origin);
        }
        if manifest_pages > limits.slots
            || (manifest_head_slot == NO_SLOT) != (manifest_pages == 0)
            || (manifest_head_slot != NO_SLOT && manifest_head_slot >= limits.slots)
        {
            return Err(Fault::Slot);
        }
        Ok(this)
    }
}

impl Default for SnapshotRecord {
    fn default() -> Self {
        Self::ZERO
    }
}

/// The header of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootHeader {
    /// Version counter of the root: the copy with the higher one is the newer.
    pub seq: u64,
    /// Identity of the region.
    pub region_uuid: [u8; 16],
    /// Operation numbers below this are used, or reserved: after a crash numbering goes on from here.
    pub next_op: u64,
    /// Number of the next snapshot.
    pub next_snapshot: u32,
    /// [`ROOT_CLEAN`] | [`ROOT_FULL_NEEDED`] | [`ROOT_AFTER_CRASH`].
    pub flags: u32,
    /// The last snapshot that was sealed, deleted since or not: what has changed is counted from its T0. 0 if none.
    pub base_id: u32,
    /// First operation of the current generation.
    pub op_first: u64,
    /// Of the blocks that pass for changed since then, at most so many perhaps are not.
    pub superset_blocks: u64,
}

impl RootHeader {
    /// The header of a fresh region.
    pub const fn fresh(region_uuid: [u8; 16]) -> Self {
        Self {
            seq: 1,
            region_uuid,
            next_op: 1,
            next_snapshot: 1,
            flags: ROOT_CLEAN,
            base_id: 0,
            op_first: 1,
            superset_blocks: 0,
        }
    }

    /// Decodes and checks an encoded root: the header and, on the way, all records.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, FormatError> {
        check(bytes, limits, |_| Ok(()))
    }

    /// Decodes both copies and picks the newer valid one. The next version goes to `copy.other()`.
    pub fn pick(a: &[u8], b: &[u8], limits: &Limits) -> Result<Picked<Self>, FormatError> {
        pick_newer(Self::decode(a, limits), Self::decode(b, limits), |header| header.seq)
    }

    /// Checks that its numbers can be counted on from: to be asked before the region is written to.
    pub fn check_room(&self) -> Result<(), FormatError> {
        let room = has_room(self.seq, u64::MAX)
            && has_room(self.next_op, u64::MAX)
            && has_room(self.next_snapshot.into(), u32::MAX.into());
        if room {
            Ok(())
        } else {
            Err(FormatError::new(Part::Root, Fault::Exhausted))
        }
    }
}

/// Checks a whole encoded root and hands out its records.
fn check(
    bytes: &[u8],
    limits: &Limits,
    mut each: impl FnMut(SnapshotRecord) -> Result<(), Fault>,
) -> Result<RootHeader, FormatError> {
    let fail = |fault| FormatError::new(Part::Root, fault);
    let root = bytes.first_chunk::<ROOT_BYTES>().ok_or(fail(Fault::Short))?;
    let (header, records) = root.split_at_checked(HEADER_BYTES).ok_or(fail(Fault::Short))?;
    let mut r = Reader::new(header);
    if r.array() != ROOT_MAGIC {
        return Err(fail(Fault::Magic));
    }
    let version = r.u32();
    if r.u32() != with_hole(root, CRC_AT) {
        return Err(fail(Fault::Checksum));
    }
    if version != ROOT_VERSION {
        return Err(fail(Fault::Version));
    }
    let mut header = RootHeader {
        seq: r.u64(),
        region_uuid: r.array(),
        next_op: r.u64(),
        next_snapshot: r.u32(),
        flags: r.u32(),
        base_id: 0,
        op_first: 0,
        superset_blocks: 0,
    };
    let count = usize::try_from(r.u32()).unwrap_or(usize::MAX);
    header.base_id = r.u32();
    header.op_first = r.u64();
    header.superset_blocks = r.u64();
    if !r.rest_is_zero() {
        return Err(fail(Fault::Reserved));
    }
    if header.region_uuid != limits.region_uuid {
        return Err(fail(Fault::Foreign));
    }
    if header.flags & !ROOT_FLAGS != 0 {
        return Err(fail(Fault::Flags));
    }
    if header.next_op == 0 || header.op_first == 0 || header.op_first > header.next_op {
        return Err(fail(Fault::OpRange));
    }
    if header.next_snapshot == 0 {
        return Err(fail(Fault::SnapshotId));
    }
    if header.base_id >= header.next_snapshot {
        return Err(fail(Fault::BaseId));
    }
    if header.superset_blocks > limits.origin_blocks {
        return Err(fail(Fault::Block));
    }
    if count > MAX_SNAPSHOTS {
        return Err(fail(Fault::Count));
    }
    let used = count.saturating_mul(SNAPSHOT_BYTES);
    let (records, unused) = records.split_at_checked(used).ok_or(fail(Fault::Count))?;
    if !is_zero(unused) {
        return Err(fail(Fault::Reserved));
    }
    let mut last_id = 0;
    for bytes in records.chunks_exact(SNAPSHOT_BYTES) {
        let bytes = bytes.first_chunk().ok_or(fail(Fault::Short))?;
        let record = SnapshotRecord::decode(bytes, &header, limits)?;
        if record.id <= last_id {
            return Err(fail(Fault::Order));
        }
        last_id = record.id;
        each(record).map_err(fail)?;
    }
    Ok(header)
}

/// Why a record was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// All places are taken: a snapshot must be deleted first.
    Full,
    /// Its number is not higher than all others.
    NotNewest,
}

impl InsertError {
    /// Returns the words for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "the snapshot table is full: delete a snapshot first",
            Self::NotNewest => "the snapshot number is not higher than all others",
        }
    }
}

/// The root in memory; `R` holds the records, oldest first.
#[derive(Debug)]
pub struct Root<R> {
    /// The header.
    pub header: RootHeader,
    records: R,
    count: usize,
}

impl<R: DerefMut<Target = [SnapshotRecord]>> Root<R> {
    /// Makes an empty root. It can hold as many snapshots as `records` has places, at most [`MAX_SNAPSHOTS`].
    pub fn new(records: R, header: RootHeader) -> Self {
        Self { header, records, count: 0 }
    }

    /// Makes a root from an encoded one.
    pub fn decode(bytes: &[u8], records: R, limits: &Limits) -> Result<Self, FormatError> {
        let mut root = Self::new(records, RootHeader::fresh(limits.region_uuid));
        let header = check(bytes, limits, |record| {
            root.insert(record).map_err(|e| match e {
                InsertError::Full => Fault::Count,
                InsertError::NotNewest => Fault::Order,
            })
        })?;
        root.header = header;
        Ok(root)
    }

    /// Encodes it.
    pub fn encode_into(&self, out: &mut [u8; ROOT_BYTES]) {
        let h = &self.header;
        let mut w = Writer::new(out);
        w.array(ROOT_MAGIC);
        w.u32(ROOT_VERSION);
        w.u32(0);
        w.u64(h.seq);
        w.array(h.region_uuid);
        w.u64(h.next_op);
        w.u32(h.next_snapshot);
        w.u32(h.flags);
        w.u32(self.count as u32);
        w.u32(h.base_id);
        w.u64(h.op_first);
        w.u64(h.superset_blocks);
        w.zero_rest();
        let places = out.get_mut(HEADER_BYTES..).unwrap_or_default();
        for (place, record) in places.chunks_exact_mut(SNAPSHOT_BYTES).zip(self.iter()) {
            if let Some(place) = place.first_chunk_mut() {
                record.encode(place);
            }
        }
        let crc = with_hole(out, CRC_AT);
        put_u32(out, CRC_AT, crc);
    }

    /// Returns the number of snapshots.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no snapshots.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns how many snapshots it can hold.
    pub fn capacity(&self) -> usize {
        self.records.len().min(MAX_SNAPSHOTS)
    }

    fn live(&self) -> &[SnapshotRecord] {
        self.records.get(..self.count).unwrap_or(&[])
    }

    /// Returns the snapshots, oldest first.
    pub fn iter(&self) -> core::slice::Iter<'_, SnapshotRecord> {
        self.live().iter()
    }

    /// Adds a snapshot. It must be the newest.
    pub fn insert(&mut self, record: SnapshotRecord) -> Result<(), InsertError> {
        if self.count >= self.capacity() {
            return Err(InsertError::Full);
        }
        if record.id <= self.newest().map_or(0, |newest| newest.id) {
            return Err(InsertError::NotNewest);
        }
        if let Some(place) = self.records.get_mut(self.count) {
            *place = record;
            self.count = self.count.wrapping_add(1);
        }
        Ok(())
    }

    /// Returns a snapshot.
    pub fn find(&self, id: u32) -> Option<&SnapshotRecord> {
        self.iter().find(|record| record.id == id)
    }

    /// Returns a snapshot to be changed; its number must stay.
    pub fn find_mut(&mut self, id: u32) -> Option<&mut SnapshotRecord> {
        self.records.get_mut(..self.count)?.iter_mut().find(|record| record.id == id)
    }

    /// Removes a snapshot and returns it.
    pub fn remove(&mut self, id: u32) -> Option<SnapshotRecord> {
        let at = self.iter().position(|record| record.id == id)?;
        let tail = self.records.get_mut(at..self.count)?;
        // Each takes the place of the one before it.
        let mut moved = SnapshotRecord::ZERO;
        for place in tail.iter_mut().rev() {
            core::mem::swap(place, &mut moved);
        }
        self.count = self.count.saturating_sub(1);
        Some(moved)
    }

    /// Returns the snapshot with the highest number.
    pub fn newest(&self) -> Option<&SnapshotRecord> {
        self.live().last()
    }

    /// Returns the snapshot with the lowest number.
    pub fn oldest(&self) -> Option<&SnapshotRecord> {
        self.live().first()
    }
}

const _: () = assert!(HEADER_BYTES == 2048);

#[cfg(test)]
mod tests {
    use super::super::Copy2;
    use super::*;

    const LIMITS: Limits =
        Limits { region_uuid: [7; 16], slots: 1000, origin_blocks: 5000, next_snapshot: 0 };

    fn record(id: u32) -> SnapshotRecord {
        SnapshotRecord {
            id,
            base_id: id - 1,
            state: SnapshotState::Sealed,
            scope: Scope::Image,
            flags: SNAPSHOT_SUPERSET,
            op_first: u64::from(id) * 10,
            op_last: u64::from(id) * 10 + 9,
            manifest_pages: 2,
            manifest_head_slot: 999,
            guard_stalls: 5,
            origin_sectors: 39_999,
            ..SnapshotRecord::ZERO
        }
    }

    fn root(seq: u64, count: u32) -> Root<Vec<SnapshotRecord>> {
        let mut header = RootHeader::fresh([7; 16]);
        header.seq = seq;
        header.next_snapshot = count + 1;
        header.next_op = 100_000;
        let mut root = Root::new(vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS], header);
        (1..=count).for_each(|id| root.insert(record(id)).unwrap());
        root
    }

    fn encoded(root: &Root<Vec<SnapshotRecord>>) -> Box<[u8; ROOT_BYTES]> {
        let mut bytes = Box::new([0xaa; ROOT_BYTES]);
        root.encode_into(&mut bytes);
        bytes
    }

    #[test]
    fn round_trip_full_and_empty() {
        for count in [0, 1, 119, 120] {
            let original = root(3, count);
            let bytes = encoded(&original);
            let records = vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS];
            let decoded = Root::decode(&bytes[..], records, &LIMITS).unwrap();
            assert_eq!(decoded.header, original.header);
            assert!(decoded.iter().eq(original.iter()));
            assert_eq!(decoded.len(), count as usize);
        }
        let few = vec![SnapshotRecord::ZERO; 3];
        let refused = Root::decode(&encoded(&root(1, 4))[..], few, &LIMITS).err().unwrap();
        assert_eq!(refused.fault, Fault::Count);
    }

    #[test]
    fn numbers_that_could_end_are_not_gone_on_from() {
        let fault = |change: fn(&mut RootHeader)| {
            let mut root = root(1, 0);
            change(&mut root.header);
            // It is whole, and can be read.
            let header = RootHeader::decode(&encoded(&root)[..], &LIMITS).unwrap();
            header.check_room().err().map(|e| e.fault)
        };
        assert_eq!(fault(|h| h.seq = u64::MAX), Some(Fault::Exhausted));
        assert_eq!(fault(|h| h.next_op = u64::MAX), Some(Fault::Exhausted));
        assert_eq!(fault(|h| h.next_op = 1 << 63), Some(Fault::Exhausted));
        assert_eq!(fault(|h| h.next_snapshot = u32::MAX), Some(Fault::Exhausted));
        assert_eq!(fault(|h| (h.seq, h.next_op) = (u64::MAX >> 1, u64::MAX >> 1)), None);
        assert_eq!(fault(|h| h.next_snapshot = u32::MAX >> 1), None);
    }

    #[test]
    fn no_more_blocks_are_uncertain_than_there_are() {
        let mut root = root(1, 2);
        root.header.superset_blocks = LIMITS.origin_blocks;
        let header = RootHeader::decode(&encoded(&root)[..], &LIMITS).unwrap();
        assert_eq!(header.superset_blocks, LIMITS.origin_blocks);
        root.header.superset_blocks += 1;
        let refused = RootHeader::decode(&encoded(&root)[..], &LIMITS).unwrap_err();
        assert_eq!(refused.fault, Fault::Block);
    }

    #[test]
    fn every_byte_counts() {
        let mut bytes = encoded(&root(3, 5));
        for i in 0..4096 {
            bytes[i] ^= 0x40;
            assert!(RootHeader::decode(&bytes[..], &LIMITS).is_err(), "byte {i}");
            bytes[i] ^= 0x40;
        }
    }

    #[test]
    fn records_are_checked_behind_a_good_checksum() {
        let refused = |change: fn(&mut SnapshotRecord), fault| {
            let mut root = root(1, 3);
            change(&mut root.records[1]);
            let got = RootHeader::decode(&encoded(&root)[..], &LIMITS).unwrap_err();
            assert_eq!(got.fault, fault);
        };
        refused(|r| r.id = 0, Fault::SnapshotId);
        refused(|r| r.id = 4, Fault::SnapshotId);
        refused(|r| (r.id, r.base_id) = (1, 0), Fault::Order);
        refused(|r| (r.id, r.base_id) = (3, 0), Fault::Order);
        refused(|r| r.base_id = 2, Fault::BaseId);
        refused(|r| r.flags = 4, Fault::Flags);
        refused(|r| r.op_last = 100_000, Fault::OpRange);
        refused(|r| r.op_first = r.op_last + 2, Fault::OpRange);
        refused(|r| r.origin_sectors = 40_001, Fault::Origin);
        refused(|r| r.op_last = u64::MAX, Fault::OpRange);
        refused(|r| r.delta_blocks = 5001, Fault::Block);
        refused(|r| r.manifest_head_slot = 1000, Fault::Slot);
        refused(|r| r.manifest_head_slot = NO_SLOT, Fault::Slot);
        refused(|r| r.manifest_pages = 0, Fault::Slot);
        refused(|r| r.manifest_pages = 1001, Fault::Slot);
        for (at, value, part, fault) in [
            (8, 1, Part::Root, Fault::Version),
            (52, 8, Part::Root, Fault::Flags),
            (60, 4, Part::Root, Fault::BaseId),
            (64, 0, Part::Root, Fault::OpRange),
            (71, 1, Part::Root, Fault::OpRange),
            (56, 121, Part::Root, Fault::Count),
            (56, 2, Part::Root, Fault::Reserved),
            (79, 1, Part::Root, Fault::Block),
            (80, 1, Part::Root, Fault::Reserved),
            (2047, 1, Part::Root, Fault::Reserved),
            (2048 + 8, 4, Part::Snapshot, Fault::State),
            (2048 + 8, 0, Part::Snapshot, Fault::State),
            (2048 + 9, 2, Part::Snapshot, Fault::Scope),
            (2048 + 28, 1, Part::Snapshot, Fault::Reserved),
            (2048 + 191, 1, Part::Snapshot, Fault::Origin),
            (2048 + 192, 1, Part::Snapshot, Fault::Reserved),
            (2048 + 255, 1, Part::Snapshot, Fault::Reserved),
            (2048 + 3 * 256, 1, Part::Root, Fault::Reserved),
        ] {
            let mut bytes = encoded(&root(1, 3));
            bytes[at] = value;
            let crc = with_hole(&bytes[..], CRC_AT);
            put_u32(&mut bytes[..], CRC_AT, crc);
            let got = RootHeader::decode(&bytes[..], &LIMITS).unwrap_err();
            assert_eq!((got.part, got.fault), (part, fault), "offset {at}");
        }
    }

    #[test]
    fn picks_the_newer_valid_copy() {
        let (old, new) = (encoded(&root(8, 1)), encoded(&root(9, 2)));
        let picked = RootHeader::pick(&old[..], &new[..], &LIMITS).unwrap();
        assert_eq!((picked.copy, picked.value.seq, picked.other_fault), (Copy2::B, 9, None));
        let mut torn = new.clone();
        torn[20_000] ^= 1;
        let picked = RootHeader::pick(&torn[..], &old[..], &LIMITS).unwrap();
        assert_eq!((picked.copy, picked.value.seq), (Copy2::B, 8));
        assert_eq!(picked.other_fault.unwrap().fault, Fault::Checksum);
        assert!(RootHeader::pick(&torn[..], &[], &LIMITS).is_err());
        let foreign = Limits { region_uuid: [1; 16], ..LIMITS };
        let refused = RootHeader::pick(&old[..], &new[..], &foreign).unwrap_err();
        assert_eq!(refused.fault, Fault::Foreign);
    }

    #[test]
    fn table_operations() {
        let mut root = root(1, 5);
        assert_eq!(root.insert(record(5)), Err(InsertError::NotNewest));
        assert_eq!(root.remove(3).unwrap().id, 3);
        assert_eq!(root.remove(3), None);
        assert_eq!(root.iter().map(|r| r.id).collect::<Vec<_>>(), [1, 2, 4, 5]);
        root.find_mut(4).unwrap().state = SnapshotState::Dropped;
        assert_eq!(root.find(4).unwrap().state, SnapshotState::Dropped);
        assert!(root.find(3).is_none() && root.find_mut(0).is_none());
        assert_eq!((root.oldest().unwrap().id, root.newest().unwrap().id), (1, 5));
        (6..).take(116).for_each(|id| root.insert(record(id)).unwrap());
        assert_eq!(root.insert(record(999)), Err(InsertError::Full));
        while let Some(id) = root.oldest().map(|r| r.id) {
            root.remove(id).unwrap();
        }
        assert!(root.is_empty());
    }
}
