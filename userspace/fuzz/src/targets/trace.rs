// SPDX-License-Identifier: GPL-2.0-only

//! Trace files: the header, and blocks until the first that is refused.

use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::trace::{
    block_bytes, decode_block, BlockEncoder, TraceHeader, BLOCK_HEADER_BYTES, MAX_BLOCK_BYTES,
    MIN_BLOCK_BYTES, TRACE_HEADER_BYTES,
};

use crate::bytes::{get_u32, mend, put_u32, says, Input};

const HEADER_CRC: usize = 12;
const BLOCK_CRC: usize = 4;
const PAYLOAD: usize = 8;
const SEQUENCE: usize = 16;

/// The file: a byte of choices, and the rest as it is; lengths, numbers and checksums of the blocks are put right.
fn file(input: &mut Input<'_>) -> Vec<u8> {
    let choice = input.u8();
    let mut out = input.rest().to_vec();
    if choice & 1 != 0 {
        return out;
    }
    if let Some(header) = out.get_mut(..TRACE_HEADER_BYTES) {
        mend(header, HEADER_CRC);
    }
    let mut at = TRACE_HEADER_BYTES;
    let mut sequence = 0;
    while let Some(rest) = out.get_mut(at..).filter(|rest| rest.len() > BLOCK_HEADER_BYTES) {
        let room = rest.len() - BLOCK_HEADER_BYTES;
        let payload = (get_u32(rest, PAYLOAD) as usize).clamp(1, room);
        if choice & 2 == 0 {
            put_u32(rest, PAYLOAD, payload as u32);
        }
        if choice & 4 == 0 {
            put_u32(rest, SEQUENCE, sequence);
        }
        let whole = BLOCK_HEADER_BYTES + payload;
        mend(&mut rest[..whole], BLOCK_CRC);
        at += whole;
        sequence += 1;
    }
    out
}

/// Writes records as blocks of a small size, and reads them back.
fn again(records: &[IoRecord]) {
    let mut left = records;
    let mut buffer = [0; 4 * MIN_BLOCK_BYTES];
    let mut sequence = 0;
    let mut read = Vec::new();
    while !left.is_empty() {
        let mut block = BlockEncoder::new(&mut buffer, sequence).expect("room for one");
        while let Some((record, rest)) = left.split_first() {
            if !block.push(record) {
                break;
            }
            left = rest;
        }
        assert!(!block.is_empty(), "a record that no block takes");
        let len = block.finish();
        let (records, used) = decode_block(&buffer[..len], sequence).expect("what was written");
        assert_eq!(used, len);
        read.extend(records.map(|r| r.expect("what was written")));
        sequence += 1;
    }
    assert!(read == records);
}

pub(crate) fn run(data: &[u8]) {
    if data.first().is_some_and(|choice| choice & 0x80 != 0) {
        // Records as they are: any of them can be written.
        let records =
            data[1..].chunks_exact(32).filter_map(|r| IoRecord::from_bytes(r.first_chunk()?));
        return again(&records.collect::<Vec<_>>());
    }
    let bytes = file(&mut Input::new(data));
    match TraceHeader::decode(&bytes) {
        Ok(header) => {
            let mut out = [0xee; TRACE_HEADER_BYTES];
            header.encode(&mut out);
            assert!(bytes.starts_with(&out));
        }
        Err(e) => says(e),
    }
    let mut rest = bytes.get(TRACE_HEADER_BYTES..).unwrap_or_default();
    let mut all = Vec::new();
    for sequence in 0.. {
        let (records, len) = match decode_block(rest, sequence) {
            Ok(block) => block,
            Err(e) => {
                says(e);
                break;
            }
        };
        assert!(len <= rest.len() && len <= MAX_BLOCK_BYTES && block_bytes(rest) == Ok(len));
        let records: Vec<_> = records.collect();
        // At least two bytes a record.
        assert!(records.len() <= len / 2 + 1);
        if let Some(bad) = records.iter().position(Result::is_err) {
            assert_eq!(bad + 1, records.len(), "records after a bad one");
            break;
        }
        if get_u32(rest, 12) != records.len() as u32 {
            panic!("{} records instead of {}", records.len(), get_u32(rest, 12));
        }
        let at = all.len();
        all.extend(records.into_iter().flatten());
        again(&all[at..]);
        // A block by itself, changed anywhere, is refused.
        let mut other = rest[..len].to_vec();
        let place = (sequence as usize * 31 + data.len()) % len;
        other[place] ^= 0x10;
        assert!(decode_block(&other, sequence).is_err());
        rest = &rest[len..];
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let kinds = [IoKind::Write, IoKind::Read, IoKind::Discard, IoKind::WriteZeroes, IoKind::Flush];
    let record = |i: u64| IoRecord {
        time_ns: 1_000_000 + i * 12_345,
        op: 7 + i / 2,
        sector: if i % 3 == 0 { i * 977 } else { i * 8 },
        sectors: 8 << (i % 2),
        kind: kinds[i as usize % 5],
    };
    let ends = IoRecord {
        time_ns: u64::MAX,
        op: u64::MAX,
        sector: u64::MAX,
        sectors: u32::MAX,
        kind: IoKind::Write,
    };
    let mut header = [0; TRACE_HEADER_BYTES];
    TraceHeader { flags: 1, origin_sectors: 1 << 20, start_realtime_ns: 5, start_ns: 6 }
        .encode(&mut header);
    let mut one = [&[0], &header[..]].concat();
    let mut out = vec![one.clone()];
    for (sequence, records) in
        (0..).zip([vec![record(0)], (0..20).map(record).collect(), vec![ends, record(1), ends]])
    {
        let mut buffer = [0; 1024];
        let mut block = BlockEncoder::new(&mut buffer, sequence).expect("room");
        assert!(records.iter().all(|r| block.push(r)));
        let len = block.finish();
        one.extend(&buffer[..len]);
        out.push(one.clone());
    }
    let records: Vec<_> =
        [record(0), ends, record(1), record(5)].iter().flat_map(|r| r.to_bytes()).collect();
    out.push([&[0x80], &records[..]].concat());
    out
}
