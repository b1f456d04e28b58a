// SPDX-License-Identifier: GPL-2.0-only

//! The record of a replica, and whether a stream goes with it.

use presnap_engine::replication::replica::REPLICA_BYTES;
use presnap_engine::replication::{
    Replica, ResumePoint, StreamHeader, STREAM_FULL, STREAM_HEADER_BYTES,
};

use crate::bytes::{get, mend, says, Input};
use crate::hostile::STREAM;

/// Fields of the record.
const RECORD: &[(usize, usize)] =
    &[(32, 8), (40, 4), (44, 4), (48, 8), (56, 8), (72, 8), (80, 8), (88, 8), (96, 4)];

/// A record and a stream's header: first the bytes of each, then numbers that they have in common.
fn both(input: &mut Input<'_>, choice: u8) -> ([u8; REPLICA_BYTES], [u8; STREAM_HEADER_BYTES]) {
    let (mut record, mut header) = ([0; REPLICA_BYTES], [0; STREAM_HEADER_BYTES]);
    input.fill(&mut record, REPLICA_BYTES);
    input.fill(&mut header, STREAM_HEADER_BYTES);
    let of_record: Vec<u64> = RECORD.iter().map(|&field| get(&record, field)).collect();
    let of_header: Vec<u64> = STREAM.iter().map(|&field| get(&header, field)).collect();
    input.tie(&mut record, RECORD, &of_header);
    input.tie(&mut header, STREAM, &of_record);
    if choice & 1 == 0 {
        mend(&mut record, 12);
    }
    mend(&mut header, 12);
    (record, header)
}

/// Reads a header.
fn header(bytes: &[u8; STREAM_HEADER_BYTES]) -> Option<StreamHeader> {
    match StreamHeader::decode(bytes) {
        Ok(header) => {
            let mut again = [0xee; STREAM_HEADER_BYTES];
            header.encode(&mut again);
            assert!(again == *bytes, "it is not what was read");
            Some(header)
        }
        Err(e) => {
            says(e);
            None
        }
    }
}

/// A record survives being written.
fn kept(replica: &Replica) {
    let mut bytes = [0xee; REPLICA_BYTES];
    replica.encode(&mut bytes);
    assert_eq!(Replica::decode(&bytes), Ok(*replica));
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let (bytes, stream) = both(&mut input, choice);
    let replica = match Replica::decode(&bytes) {
        Ok(replica) => {
            let mut again = [0xee; REPLICA_BYTES];
            replica.encode(&mut again);
            assert!(again == bytes, "it is not what was read");
            replica
        }
        Err(e) => {
            says(e);
            Replica::default()
        }
    };
    assert!(!replica.is_empty() || replica == Replica::default());
    let Some(header) = header(&stream) else { return };
    let sectors = if choice & 2 == 0 { header.origin_sectors } else { input.u64() };
    let overwrite = choice & 4 != 0;
    if let Err(e) = replica.accept(&header, sectors, overwrite) {
        return says(e);
    }
    assert!(sectors >= header.origin_sectors);
    let resumed = header.start != ResumePoint::START;
    // Nothing but a full stream changes what origin this is a copy of.
    assert!(header.is_full() || replica.region_uuid == header.region_uuid);
    assert!(replica.is_empty() || overwrite || replica.region_uuid == header.region_uuid);
    // A delta is applied to its base, or to what is between that and the snapshot.
    assert!(header.is_full() || replica.snapshot == header.base);
    assert!(header.is_full() || replica.origin_sectors <= header.origin_sectors);
    assert!(!resumed || replica.point == header.start && replica.receiving == header.snapshot);
    assert!(header.is_full() || [0, header.snapshot].contains(&replica.receiving));
    // What is made durable on the way can be read, and can be taken up again.
    let begun = replica.begun(&header);
    kept(&begun);
    assert_eq!(begun.accept(&header, sectors, overwrite), Ok(()));
    let completed = begun.completed(&header);
    kept(&completed);
    assert_eq!((completed.snapshot, completed.receiving), (header.snapshot, 0));
    assert!(header.is_full() || completed.accept(&header, sectors, overwrite).is_err());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let delta = StreamHeader {
        flags: 2,
        region_uuid: [7; 16],
        origin_id: [0; 16],
        origin_sectors: 8003,
        snapshot: 5,
        base: 4,
        op_first: 100,
        op_last: 200,
        t0_realtime_ns: 1,
        total_blocks: 10,
        start: ResumePoint::START,
    };
    let point = ResumePoint { sequence: 2, chain: 5, blocks: 3, next_block: 9 };
    let full = StreamHeader { flags: STREAM_FULL, base: 0, ..delta };
    let held = Replica::default().completed(&StreamHeader { snapshot: 4, ..full });
    let busy = held.begun(&delta).advanced(point);
    let mut out = Vec::new();
    for replica in [Replica::default(), held, busy, held.begun(&full).advanced(point)] {
        for header in [delta, full, StreamHeader { start: point, ..delta }] {
            let (mut a, mut b) = ([0; REPLICA_BYTES], [0; STREAM_HEADER_BYTES]);
            replica.encode(&mut a);
            header.encode(&mut b);
            out.push([&[0], &a[..], &b].concat());
        }
    }
    out
}
