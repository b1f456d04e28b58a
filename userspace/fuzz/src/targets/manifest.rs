// SPDX-License-Identifier: GPL-2.0-only

//! The pages of a manifest.

use presnap_engine::manifest::{
    chain_crc, pages_for, Chunk, ManifestReader, PageBuilder, CHUNK_DISCARDED, CHUNK_ZERO,
    PAGE_BYTES, PAGE_CHUNKS,
};
use presnap_engine::region::{Limits, SnapshotRecord, NO_SLOT};

use crate::bytes::{get, get_u32, mend, says, Input};
use crate::hostile::CHUNK as FIELDS;

const LIMITS: Limits =
    Limits { region_uuid: [9; 16], slots: 1040, origin_blocks: 1 << 20, next_snapshot: 9 };
const HEADER: usize = 32;
const CHUNK: usize = 32;
const CRC_AT: usize = 20;

/// A page: a byte of choices, the header, then (as many as its count says) chunks; the unused rest is zero. A full
/// page takes too many bytes to be spelled out: of a long one the chunks repeat, one after the other.
fn page(input: &mut Input<'_>) -> [u8; PAGE_BYTES] {
    let mut out = [0; PAGE_BYTES];
    let choice = input.u8();
    input.fill(&mut out, HEADER);
    let count = get_u32(&out, 12).min(PAGE_CHUNKS) as usize;
    let given = usize::from(choice & 15).min(count);
    for place in out[HEADER..].chunks_exact_mut(CHUNK).take(given) {
        input.fill(place, CHUNK);
    }
    for i in given.max(1)..count {
        let (before, place) = out.split_at_mut(HEADER + i * CHUNK);
        place[..CHUNK].copy_from_slice(&before[before.len() - CHUNK..]);
        let start = u64::from_le_bytes(*place.first_chunk().expect("8 bytes"));
        let length = get_u32(place, 8);
        place[..8].copy_from_slice(&start.wrapping_add(length.into()).to_le_bytes());
    }
    if choice & 0x40 != 0 {
        input.patch(&mut out);
        for chunk in out[HEADER..].chunks_exact_mut(CHUNK).take(given) {
            let (start, length) = (get(chunk, (0, 8)), get(chunk, (8, 4)));
            let slots = u64::from(LIMITS.slots);
            let numbers = [
                LIMITS.origin_blocks.wrapping_sub(length),
                LIMITS.origin_blocks.wrapping_sub(start),
                slots.wrapping_sub(length),
                slots,
                u64::MAX,
                start.wrapping_add(length),
            ];
            input.tie(chunk, FIELDS, &numbers);
        }
    }
    if choice & 0x80 == 0 {
        mend(&mut out, CRC_AT);
    }
    out
}

/// What an accepted chunk must be.
pub(crate) fn sound(chunk: &Chunk, end_before: u64, limits: &Limits) {
    let end = chunk.end_block().expect("a chunk that ends");
    assert!(chunk.length_blocks > 0 && chunk.start_block >= end_before, "{chunk:?}");
    assert!(end <= limits.origin_blocks, "{chunk:?}");
    if chunk.is_zero() {
        assert!(chunk.slot == NO_SLOT && chunk.checksum == 0);
    } else {
        assert!(chunk.slot.checked_add(chunk.length_blocks).is_some_and(|e| e <= limits.slots));
    }
    assert!([0, CHUNK_ZERO, CHUNK_ZERO | CHUNK_DISCARDED].contains(&chunk.flags));
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let mut record = SnapshotRecord { id: 5, ..SnapshotRecord::ZERO };
    record.manifest_pages = u32::from(choice & 7);
    record.manifest_chunks = u32::from(input.u16());
    let pages: Vec<_> = (0..choice & 7).map(|_| page(&mut input)).collect();
    // Of what use the checksum of all pages is, is said below; here it would only be in the way.
    record.manifest_crc = pages.iter().fold(0, |crc, p| chain_crc(crc, get_u32(p, CRC_AT)));

    let mut reader = ManifestReader::new(&record, &LIMITS);
    let mut chunks: Vec<Chunk> = Vec::new();
    for (no, bytes) in (0..).zip(&pages) {
        let page = match reader.page(bytes) {
            Ok(page) => page,
            Err(e) => return says(e),
        };
        let first = chunks.len();
        chunks.extend(page.chunks());
        for i in first..chunks.len() {
            let before = i.checked_sub(1).and_then(|i| chunks[i].end_block()).unwrap_or(0);
            sound(&chunks[i], before, &LIMITS);
        }
        // It is what could have been written.
        let mut again = [0xee; PAGE_BYTES];
        let mut builder = PageBuilder::new(&mut again, record.id, no);
        chunks[first..].iter().for_each(|c| builder.push(c).expect("room"));
        builder.finish(page.next_page_slot);
        assert!(again == *bytes, "page {no} is not what was read");
        assert!(page.next_page_slot.is_none_or(|slot| slot < LIMITS.slots));
        assert_eq!(page.next_page_slot.is_none(), no + 1 == record.manifest_pages);
    }
    match reader.finish() {
        Ok(()) => assert_eq!(chunks.len() as u64, u64::from(record.manifest_chunks)),
        Err(e) => return says(e),
    }
    // A page that is another one by a single bit is found, by itself or in the end.
    if let Some(at) = (input.u16() as usize).checked_rem(pages.len() * PAGE_BYTES) {
        let mut pages = pages;
        pages[at / PAGE_BYTES][at % PAGE_BYTES] ^= 1 << (choice >> 5);
        if choice & 0x10 != 0 {
            mend(&mut pages[at / PAGE_BYTES], CRC_AT);
        }
        let changed = pages.iter().fold(0, |crc, p| chain_crc(crc, get_u32(p, CRC_AT)));
        let mut reader = ManifestReader::new(&record, &LIMITS);
        let read = pages.iter().all(|p| reader.page(p).is_ok());
        assert!(!read || reader.finish().is_err() || changed == record.manifest_crc);
        // A flip in the checksum alone, mended, is no change.
        assert!(changed != record.manifest_crc || at % PAGE_BYTES / 4 == CRC_AT / 4 || !read);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let chunk = |i: u32| {
        let zero = i % 4 == 3;
        Chunk {
            start_block: u64::from(i) * 100,
            length_blocks: 1 + i % 20,
            slot: if zero { NO_SLOT } else { i },
            score: i as u16,
            flags: if zero { CHUNK_ZERO | (i as u16 & CHUNK_DISCARDED) } else { 0 },
            checksum: if zero { 0 } else { !i },
        }
    };
    let mut out = Vec::new();
    for (count, gap) in [(0, 0), (1, 0), (5, 0), (5, 80), (127, 80), (140, 80), (260, 80)] {
        let mut chunks: Vec<_> = (0..count).map(chunk).collect();
        let mut end = 0;
        for chunk in &mut chunks {
            chunk.start_block = end;
            end += u64::from(chunk.length_blocks) + gap;
        }
        let pages = pages_for(count);
        let mut one = vec![pages as u8];
        one.extend((count as u16).to_le_bytes());
        for (no, part) in (0..).zip(chunks.chunks(PAGE_CHUNKS as usize)) {
            let mut page = [0; PAGE_BYTES];
            let mut builder = PageBuilder::new(&mut page, 5, no);
            part.iter().for_each(|c| builder.push(c).expect("room"));
            builder.finish((no + 1 < pages).then_some(700 + no));
            let given = part.len().min(5);
            one.push(given as u8);
            one.extend(&page[..HEADER + given * CHUNK]);
        }
        out.push(one);
    }
    out
}
