// SPDX-License-Identifier: GPL-2.0-only

//! The two copies of the root, and going on from the better one.

use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES, ROOT_CLEAN, SNAPSHOT_BYTES};
use presnap_engine::region::{
    Copy2, Limits, Root, RootHeader, SnapshotRecord, SnapshotState, NO_SLOT,
};

use crate::bytes::{get, mend, says, Input};
use crate::hostile::{RECORD as RECORD_FIELDS, ROOT};

pub(crate) type Table = Root<Vec<SnapshotRecord>>;

const LIMITS: Limits =
    Limits { region_uuid: [9; 16], slots: 1040, origin_blocks: 1 << 20, next_snapshot: u32::MAX };
/// Bytes of the header and of a record that have fields, with some reserved ones.
const HEAD: usize = 64;
const RECORD: usize = 192;
const FIRST_RECORD: usize = ROOT_BYTES - MAX_SNAPSHOTS * SNAPSHOT_BYTES;
/// Operation numbers that are reserved at each start.
const OP_RESERVE: u64 = 1 << 40;

/// A copy: a byte of choices and the number of records, the header, the records, patches.
fn copy(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = vec![0; ROOT_BYTES];
    if input.is_empty() {
        return out;
    }
    let choice = input.u8();
    input.fill(&mut out, HEAD);
    for place in out[FIRST_RECORD..].chunks_exact_mut(SNAPSHOT_BYTES).take((choice & 15).into()) {
        input.fill(place, RECORD);
    }
    input.patch(&mut out);
    let [next_op, next_snapshot] = [(40, 8), (48, 4)].map(|field| get(&out, field));
    for place in out[FIRST_RECORD..].chunks_exact_mut(SNAPSHOT_BYTES).take((choice & 15).into()) {
        let [id, op_first, op_last] = [(0, 4), (32, 8), (40, 8)].map(|field| get(place, field));
        let slots = LIMITS.slots.into();
        let numbers = [
            id,
            op_first,
            op_last,
            next_op,
            next_snapshot,
            slots,
            LIMITS.origin_blocks,
            0,
            1 << 32,
        ];
        input.tie(place, RECORD_FIELDS, &numbers);
    }
    input.tie(&mut out, ROOT, &[next_op, next_snapshot, MAX_SNAPSHOTS as u64, u64::MAX >> 1, 0]);
    if choice & 0x80 == 0 {
        mend(&mut out, 12);
    }
    out
}

/// Reads a root by both ways, which must agree.
pub(crate) fn read(bytes: &[u8], limits: &Limits) -> Option<Table> {
    let header = RootHeader::decode(bytes, limits);
    let table = Root::decode(bytes, vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS], limits);
    match (header, table) {
        (Ok(header), Ok(table)) => {
            assert_eq!(header, table.header);
            Some(table)
        }
        (Err(e), Err(other)) => {
            assert_eq!(e, other);
            says(e);
            None
        }
        (header, table) => panic!("{header:?} and {table:?}"),
    }
}

pub(crate) fn encode(table: &Table) -> Vec<u8> {
    let mut out = vec![0xee; ROOT_BYTES];
    table.encode_into(out.first_chunk_mut().expect("32 KiB"));
    out
}

/// What an accepted root must be.
pub(crate) fn sound(table: &Table, limits: &Limits) {
    let h = &table.header;
    assert!(h.region_uuid == limits.region_uuid && h.next_op > 0 && h.next_snapshot > 0);
    let mut last = 0;
    for r in table.iter() {
        assert!(r.id > last && r.id < h.next_snapshot && r.base_id < r.id, "{r:?}");
        assert!(r.op_last < h.next_op && r.op_first <= r.op_last.saturating_add(1), "{r:?}");
        assert!(r.delta_blocks <= limits.origin_blocks && r.manifest_pages <= limits.slots);
        let head = r.manifest_head_slot;
        assert!(if r.manifest_pages == 0 { head == NO_SLOT } else { head < limits.slots });
        assert_eq!(table.find(r.id), Some(r));
        last = r.id;
    }
}

/// From what is opened, the device goes on: opens it (as the kernel does), takes a snapshot, closes. What is written
/// must be read again, and count.
pub(crate) fn goes_on(mut table: Table, copy: Copy2, limits: &Limits) {
    let mut copies = [vec![0; ROOT_BYTES], vec![0; ROOT_BYTES]];
    copies[copy.index()] = encode(&table);
    let mut next = copy.other();
    for round in 0..2 {
        let first_op = table.header.next_op;
        table.header.seq = table.header.seq.saturating_add(1);
        table.header.next_op = first_op.saturating_add(OP_RESERVE);
        table.header.flags &= !ROOT_CLEAN;
        if round == 0 && table.len() < MAX_SNAPSHOTS {
            let id = table.header.next_snapshot;
            table.header.next_snapshot = id.saturating_add(1);
            let record = SnapshotRecord {
                id,
                base_id: table.newest().map_or(0, |r| r.id),
                state: SnapshotState::Sealed,
                op_first: first_op,
                op_last: first_op + 10,
                ..SnapshotRecord::ZERO
            };
            table.insert(record).expect("the newest, and there is room");
        }
        copies[next.index()] = encode(&table);
        let picked = RootHeader::pick(&copies[0], &copies[1], limits).expect("what was written");
        assert_eq!((picked.copy, picked.value), (next, table.header), "round {round}");
        assert_eq!(picked.other_fault, None);
        next = next.other();
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let copies = [copy(&mut input), copy(&mut input)];
    let tables = [0, 1].map(|i| {
        let table = read(&copies[i], &LIMITS);
        if let Some(table) = &table {
            sound(table, &LIMITS);
            assert!(encode(table) == copies[i], "it is not what was read");
        }
        table
    });
    let seqs = [0, 1].map(|i| tables[i].as_ref().map(|t| t.header.seq));
    match RootHeader::pick(&copies[0], &copies[1], &LIMITS) {
        Ok(picked) => {
            let [mine, other] = [picked.copy, picked.copy.other()].map(|c| seqs[c.index()]);
            assert!(mine >= other && mine == Some(picked.value.seq));
            assert_eq!(picked.other_fault.is_some(), other.is_none());
            let [a, b] = tables;
            let table = if picked.copy == Copy2::A { a } else { b }.expect("it was picked");
            if table.header.check_room().is_ok() {
                goes_on(table, picked.copy, &LIMITS);
            }
        }
        Err(e) => {
            says(e);
            assert_eq!(seqs, [None, None]);
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let header = RootHeader { next_op: 1000, next_snapshot: 8, ..RootHeader::fresh([9; 16]) };
    let mut table = Root::new(vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS], header);
    let mut out = Vec::new();
    for id in 0..4 {
        if id > 0 {
            let record = SnapshotRecord {
                id,
                base_id: id - 1,
                state: SnapshotState::Sealed,
                op_first: 10,
                op_last: 99,
                manifest_pages: 1,
                manifest_chunks: 3,
                manifest_head_slot: id,
                delta_blocks: 5,
                ..SnapshotRecord::ZERO
            };
            table.insert(record).expect("room");
        }
        let bytes = encode(&table);
        let mut one = vec![id as u8];
        one.extend(&bytes[..HEAD]);
        for i in 0..table.len() {
            one.extend(&bytes[FIRST_RECORD + i * SNAPSHOT_BYTES..][..RECORD]);
        }
        one.push(0);
        out.push(one.clone());
        table.header.seq += 1;
        let bytes = encode(&table);
        one.push(0);
        one.extend(&bytes[..HEAD]);
        one.push(0);
        out.push(one);
    }
    out
}
