// SPDX-License-Identifier: GPL-2.0-only

//! The manifest of a snapshot: its chunks with their places, scores and checksums, in pages that lie in slots.
//!
//! The pages form a list; the snapshot record has the slot of the first, their number, the number of chunks and
//! a checksum over the checksums of all pages, so that a page of another time or snapshot is never taken for one of
//! these. Chunks ascend and do not overlap, within a page and across pages.

use core::fmt;

use crate::crc32c::{crc32c, with_hole};
use crate::geometry::BLOCK_BYTES;
use crate::region::bytes::{put_u32, Reader, Writer};
use crate::region::{Fault, FormatError, Layout, Limits, Part, SnapshotRecord, NO_SLOT};

/// Bytes of a page: one block.
pub const PAGE_BYTES: usize = BLOCK_BYTES as usize;
/// Chunks that a page can hold.
pub const PAGE_CHUNKS: u32 = 127;
/// The magic number, "PSMF".
pub const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"PSMF");

const HEADER_BYTES: usize = 32;
const CHUNK_BYTES: usize = 32;
/// Offsets of fields that are written last.
const COUNT_AT: usize = 12;
const NEXT_AT: usize = 16;
const CRC_AT: usize = 20;

/// Chunk flag: it reads as zero and takes no slots.
pub const CHUNK_ZERO: u16 = 1;
/// Chunk flag, only with [`CHUNK_ZERO`]: it was discarded.
pub const CHUNK_DISCARDED: u16 = 2;

/// A run of preserved blocks in as many neighbouring slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// First block of the origin.
    pub start_block: u64,
    /// Number of blocks, at least 1.
    pub length_blocks: u32,
    /// First slot; [`NO_SLOT`] if the chunk is zero.
    pub slot: u32,
    /// The score it was copied with, a probability (`Prob`).
    pub score: u16,
    /// [`CHUNK_ZERO`] | [`CHUNK_DISCARDED`].
    pub flags: u16,
    /// CRC32C of its content; 0 if the chunk is zero.
    pub checksum: u32,
}

impl Chunk {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.start_block);
        w.u32(self.length_blocks);
        w.u32(self.slot);
        w.u16(self.score);
        w.u16(self.flags);
        w.u32(self.checksum);
        w.u64(0);
    }

    fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        let mut r = Reader::new(bytes);
        let this = Self {
            start_block: r.u64(),
            length_blocks: r.u32(),
            slot: r.u32(),
            score: r.u16(),
            flags: r.u16(),
            checksum: r.u32(),
        };
        if r.u64() != 0 {
            return Err(Fault::Reserved);
        }
        let end = this.end_block().ok_or(Fault::Block)?;
        if this.length_blocks == 0 || end > limits.origin_blocks {
            return Err(Fault::Block);
        }
        match this.flags {
            0 => {
                let end = this.slot.checked_add(this.length_blocks);
                if end.is_none_or(|end| end > limits.slots)
                    || !Layout::contiguous(this.slot, this.length_blocks)
                {
                    return Err(Fault::Slot);
                }
            }
            CHUNK_ZERO | 3 => {
                if this.slot != NO_SLOT || this.checksum != 0 {
                    return Err(Fault::Slot);
                }
            }
            _ => return Err(Fault::Flags),
        }
        Ok(this)
    }

    /// Returns the block after the last, `None` if there is no such number.
    pub const fn end_block(&self) -> Option<u64> {
        self.start_block.checked_add(self.length_blocks as u64)
    }

    /// Whether it reads as zero and takes no slots.
    pub const fn is_zero(&self) -> bool {
        self.flags & CHUNK_ZERO != 0
    }
}

/// Returns how many pages `chunks` chunks take; an empty manifest has none.
pub const fn pages_for(chunks: u32) -> u32 {
    chunks.div_ceil(PAGE_CHUNKS)
}

/// Continues the checksum of a manifest (0 to begin) with the checksum of its next page.
pub fn chain_crc(manifest_crc: u32, page_crc: u32) -> u32 {
    crc32c(manifest_crc, &page_crc.to_le_bytes())
}

/// A page has no room for another chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFull;

impl fmt::Display for PageFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the manifest page is full")
    }
}

/// Builds a page in a buffer of the caller.
pub struct PageBuilder<'a> {
    out: &'a mut [u8; PAGE_BYTES],
    count: u32,
}

impl<'a> PageBuilder<'a> {
    /// Begins page `page_no` (from 0) of a snapshot's manifest.
    pub fn new(out: &'a mut [u8; PAGE_BYTES], snapshot: u32, page_no: u32) -> Self {
        let mut w = Writer::new(out);
        w.u32(PAGE_MAGIC);
        w.u32(snapshot);
        w.u32(page_no);
        w.zero_rest();
        Self { out, count: 0 }
    }

    /// Returns the number of chunks so far.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether it has no chunks yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a chunk; chunks must ascend.
    pub fn push(&mut self, chunk: &Chunk) -> Result<(), PageFull> {
        if self.count >= PAGE_CHUNKS {
            return Err(PageFull);
        }
        let at = (self.count as usize).wrapping_mul(CHUNK_BYTES).wrapping_add(HEADER_BYTES);
        let place = self.out.get_mut(at..).ok_or(PageFull)?;
        chunk.encode(&mut Writer::new(place));
        self.count = self.count.wrapping_add(1);
        Ok(())
    }

    /// Completes the page with the slot of the next, `None` if it is the last; returns its checksum.
    pub fn finish(self, next_page_slot: Option<u32>) -> u32 {
        put_u32(self.out, COUNT_AT, self.count);
        put_u32(self.out, NEXT_AT, next_page_slot.unwrap_or(NO_SLOT));
        let crc = with_hole(self.out, CRC_AT);
        put_u32(self.out, CRC_AT, crc);
        crc
    }
}

/// A checked page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    chunks: &'a [u8],
    limits: Limits,
    /// Slot of the next page, `None` if this is the last.
    pub next_page_slot: Option<u32>,
}

impl<'a> Page<'a> {
    /// Returns its chunks.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk> + 'a {
        let limits = self.limits;
        // They were checked when the page was.
        self.chunks
            .chunks_exact(CHUNK_BYTES)
            .filter_map(move |bytes| Chunk::decode(bytes, &limits).ok())
    }
}

/// Reads the pages of a manifest in order and checks each, and in the end the whole.
#[derive(Clone, Copy, Debug)]
pub struct ManifestReader {
    limits: Limits,
    snapshot: u32,
    pages: u32,
    chunks: u32,
    crc: u32,
    next_page: u32,
    chunks_seen: u32,
    crc_seen: u32,
    end_block: u64,
}

impl ManifestReader {
    /// Begins to read the manifest that a snapshot record describes.
    pub fn new(record: &SnapshotRecord, limits: &Limits) -> Self {
        Self {
            limits: *limits,
            snapshot: record.id,
            pages: record.manifest_pages,
            chunks: record.manifest_chunks,
            crc: record.manifest_crc,
            next_page: 0,
            chunks_seen: 0,
            crc_seen: 0,
            end_block: 0,
        }
    }

    /// Decodes and checks the next page. After an error the same page may be tried again.
    pub fn page<'a>(&mut self, bytes: &'a [u8]) -> Result<Page<'a>, FormatError> {
        let fail = |fault| FormatError::new(Part::Manifest, fault);
        let page = bytes.first_chunk::<PAGE_BYTES>().ok_or(fail(Fault::Short))?;
        let (header, chunks) = page.split_at_checked(HEADER_BYTES).ok_or(fail(Fault::Short))?;
        let mut r = Reader::new(header);
        if r.u32() != PAGE_MAGIC {
            return Err(fail(Fault::Magic));
        }
        let (snapshot, page_no, count) = (r.u32(), r.u32(), r.u32());
        let (next, crc, reserved) = (r.u32(), r.u32(), r.u64());
        if crc != with_hole(page, CRC_AT) {
            return Err(fail(Fault::Checksum));
        }
        if snapshot != self.snapshot || page_no != self.next_page {
            return Err(fail(Fault::Misplaced));
        }
        if reserved != 0 {
            return Err(fail(Fault::Reserved));
        }
        let seen = self.chunks_seen.checked_add(count).ok_or(fail(Fault::Count))?;
        let following = self.next_page.saturating_add(1);
        if count == 0 || count > PAGE_CHUNKS || seen > self.chunks || following > self.pages {
            return Err(fail(Fault::Count));
        }
        // The list ends where the record says.
        if (next == NO_SLOT) != (following == self.pages) {
            return Err(fail(Fault::Count));
        }
        if next != NO_SLOT && next >= self.limits.slots {
            return Err(fail(Fault::Slot));
        }
        let used = (count as usize).wrapping_mul(CHUNK_BYTES);
        let (chunks, unused) = chunks.split_at_checked(used).ok_or(fail(Fault::Count))?;
        if !Reader::new(unused).rest_is_zero() {
            return Err(fail(Fault::Reserved));
        }
        let mut end_block = self.end_block;
        for bytes in chunks.chunks_exact(CHUNK_BYTES) {
            let chunk = Chunk::decode(bytes, &self.limits).map_err(fail)?;
            if chunk.start_block < end_block {
                return Err(fail(Fault::Order));
            }
            end_block = chunk.end_block().ok_or(fail(Fault::Block))?;
        }
        self.end_block = end_block;
        self.chunks_seen = seen;
        self.crc_seen = chain_crc(self.crc_seen, crc);
        self.next_page = following;
        let next_page_slot = Some(next).filter(|&slot| slot != NO_SLOT);
        Ok(Page { chunks, limits: self.limits, next_page_slot })
    }

    /// Checks that all pages were read and that together they are what the snapshot record describes.
    pub fn finish(&self) -> Result<(), FormatError> {
        let fail = |fault| Err(FormatError::new(Part::Manifest, fault));
        if self.next_page != self.pages || self.chunks_seen != self.chunks {
            return fail(Fault::Count);
        }
        if self.crc_seen != self.crc {
            return fail(Fault::Checksum);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { region_uuid: [7; 16], slots: 2000, origin_blocks: 100_000, next_snapshot: 9 };

    fn chunk(i: u32) -> Chunk {
        match i % 5 {
            4 => Chunk {
                start_block: u64::from(i) * 100,
                length_blocks: 100,
                slot: NO_SLOT,
                score: 9,
                flags: if i % 2 == 0 { CHUNK_ZERO } else { CHUNK_ZERO | CHUNK_DISCARDED },
                checksum: 0,
            },
            n => Chunk {
                start_block: u64::from(i) * 100,
                length_blocks: n + 1,
                slot: i,
                score: i as u16,
                flags: 0,
                checksum: !i,
            },
        }
    }

    type Pages = Vec<[u8; PAGE_BYTES]>;

    fn manifest(chunks: &[Chunk]) -> (SnapshotRecord, Pages) {
        let mut record = SnapshotRecord { id: 5, ..SnapshotRecord::ZERO };
        record.manifest_chunks = chunks.len() as u32;
        record.manifest_pages = pages_for(record.manifest_chunks);
        let mut pages = Vec::new();
        for (page_no, chunks) in (0..).zip(chunks.chunks(PAGE_CHUNKS as usize)) {
            let mut page = [0xaa; PAGE_BYTES];
            let mut builder = PageBuilder::new(&mut page, 5, page_no);
            chunks.iter().for_each(|chunk| builder.push(chunk).unwrap());
            let next = (page_no + 1 < record.manifest_pages).then_some(700 + page_no);
            record.manifest_crc = chain_crc(record.manifest_crc, builder.finish(next));
            pages.push(page);
        }
        (record, pages)
    }

    fn read(record: &SnapshotRecord, pages: &Pages) -> Result<Vec<Chunk>, Fault> {
        let mut reader = ManifestReader::new(record, &LIMITS);
        let mut chunks = Vec::new();
        for page in pages {
            chunks.extend(reader.page(page).map_err(|e| e.fault)?.chunks());
        }
        reader.finish().map_err(|e| e.fault).map(|()| chunks)
    }

    #[test]
    fn round_trip() {
        for count in [0, 1, 126, 127, 128, 500] {
            let chunks: Vec<_> = (0..count).map(chunk).collect();
            let (record, pages) = manifest(&chunks);
            assert_eq!(pages.len() as u32, record.manifest_pages);
            assert_eq!(read(&record, &pages), Ok(chunks));
        }
        let mut page = [0; PAGE_BYTES];
        let mut builder = PageBuilder::new(&mut page, 1, 0);
        assert!(builder.is_empty());
        while builder.push(&chunk(builder.len())).is_ok() {}
        assert_eq!(builder.len(), PAGE_CHUNKS);
    }

    #[test]
    fn every_byte_counts() {
        let (record, mut pages) = manifest(&(0..200).map(chunk).collect::<Vec<_>>());
        for at in 0..PAGE_BYTES {
            pages[1][at] ^= 0x04;
            assert!(read(&record, &pages).is_err(), "byte {at}");
            pages[1][at] ^= 0x04;
        }
    }

    #[test]
    fn pages_belong_together() {
        let chunks: Vec<_> = (0..300).map(chunk).collect();
        let (record, pages) = manifest(&chunks);
        let swapped = vec![pages[0], pages[2], pages[1]];
        assert_eq!(read(&record, &swapped), Err(Fault::Misplaced));
        assert_eq!(read(&record, &pages[..2].to_vec()), Err(Fault::Count));
        let again = [&pages[..], &pages[..1]].concat();
        assert_eq!(read(&record, &again), Err(Fault::Misplaced));
        // A page of another manifest of the same snapshot.
        let mut changed = chunks.clone();
        changed[5].score ^= 1;
        let (_, others) = manifest(&changed);
        let mixed = vec![others[0], pages[1], pages[2]];
        assert_eq!(read(&record, &mixed), Err(Fault::Checksum));
        let other = SnapshotRecord { id: 6, ..record };
        assert_eq!(read(&other, &pages), Err(Fault::Misplaced));
        let fewer = SnapshotRecord { manifest_pages: 2, ..record };
        assert_eq!(read(&fewer, &pages), Err(Fault::Count));
        let mut reader = ManifestReader::new(&record, &LIMITS);
        assert_eq!(reader.page(&pages[0][..100]).unwrap_err().fault, Fault::Short);
        assert_eq!(reader.page(&pages[0]).unwrap().next_page_slot, Some(700));
    }

    #[test]
    fn chunks_are_checked_behind_a_good_checksum() {
        let refused = |change: fn(&mut Chunk), fault| {
            let mut chunks: Vec<_> = (0..130).map(chunk).collect();
            change(&mut chunks[128]);
            let (record, pages) = manifest(&chunks);
            assert_eq!(read(&record, &pages), Err(fault));
        };
        refused(|c| c.length_blocks = 0, Fault::Block);
        refused(|c| c.start_block = u64::MAX, Fault::Block);
        refused(|c| c.start_block = 99_999, Fault::Block);
        refused(|c| c.slot = 1998, Fault::Slot);
        refused(|c| c.slot = u32::MAX, Fault::Slot);
        refused(|c| c.flags = CHUNK_ZERO, Fault::Slot);
        refused(|c| c.flags = CHUNK_DISCARDED, Fault::Flags);
        refused(|c| c.flags = 4, Fault::Flags);
        refused(|c| c.start_block = 12_702, Fault::Order);
        refused(|c| c.length_blocks = 101, Fault::Order);
        for (at, value, fault) in [
            (12, 2, Fault::Reserved),
            (12, 0, Fault::Count),
            (12, 128, Fault::Count),
            (16, 7, Fault::Count),
            (24, 1, Fault::Reserved),
            (32 + 24, 1, Fault::Reserved),
            (4095, 1, Fault::Reserved),
        ] {
            let (record, mut pages) = manifest(&[chunk(0), chunk(1), chunk(2)]);
            pages[0][at] = value;
            let crc = with_hole(&pages[0], CRC_AT);
            put_u32(&mut pages[0], CRC_AT, crc);
            assert_eq!(read(&record, &pages), Err(fault), "offset {at}");
        }
    }
}
