// SPDX-License-Identifier: GPL-2.0-only

//! The log of dm-log-writes, and what a power loss leaves of it.
//!
//! The target logs a write when it has become durable: a FUA write when it completes, any other when a flush that
//! was sent after its completion completes. So a flush stands behind its *batch*, the writes that it made durable, and the
//! log up to any entry is what is durable for sure at some instant. Just before the flush completes every write
//! of its batch is in the disk's cache, and each may be lost or not; just before a FUA write completes each of its
//! sectors may be. No other loss can be told from the log.
//!
//! QEMU's driver blklogwrites has the same format, and another order: it logs each request when it completes. What stands
//! before the last flush is durable then, and each write behind it may be lost or not. Its entries go on behind the number that
//! the log's head says, which is that of the last flush.
//!
//! One order the log of dm-log-writes does not have: a FUA write stands before a write of the same sector that completed before it, but
//! was in the cache. Sectors of presnap-torture tell which is the newer one (it
//! takes care of that when it records a history); nothing else mixes the two so.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use presnap_blockio::{Buffer, Mode};

use crate::device::MAX_IO;
use crate::rng::Rng;
use crate::sector::{is_newer, SECTOR};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// An entry of the log; places and sizes in sectors of 512 bytes.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Where its data lie in the log.
    at: u64,
    /// Where it went.
    pub(crate) sector: u64,
    /// How much.
    pub(crate) sectors: u64,
    flags: u64,
    /// The words of a mark.
    pub(crate) mark: Option<String>,
}

impl Entry {
    /// Nothing was written here.
    fn is_blank(&self) -> bool {
        self.flags == 0 && self.sectors == 0
    }

    /// Where it ends in the log.
    fn end(&self) -> u64 {
        self.at + if self.flags & DISCARD == 0 { self.sectors } else { 0 }
    }

    pub(crate) fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// In the disk's cache until a flush.
    pub(crate) fn is_cached(&self) -> bool {
        self.flags & (FLUSH | FUA | MARK) == 0
    }
}

/// A log, or another large file, of which neighbouring places are read one after the other.
struct Window {
    file: File,
    bytes: u64,
    buffer: Buffer,
    start: u64,
    filled: usize,
}

impl Window {
    fn new(file: File) -> Result<Self> {
        let bytes = presnap_blockio::size(&file)?;
        Ok(Self { file, bytes, buffer: Buffer::new(2 * MAX_IO), start: 0, filled: 0 })
    }

    /// At most [`MAX_IO`] bytes, at a multiple of 512.
    fn get(&mut self, at: u64, length: usize) -> Result<&[u8]> {
        let end = at + length as u64;
        if at < self.start || end > self.start + self.filled as u64 {
            ensure!(end <= self.bytes && length <= MAX_IO, "{length} bytes at {at} are not there");
            self.filled = 0;
            let n = self.buffer.len().min((self.bytes - at) as usize);
            self.file.read_exact_at(self.buffer.slice(n), at)?;
            (self.start, self.filled) = (at, n);
        }
        let from = (at - self.start) as usize;
        self.buffer.get(from..from + length).context("the window")
    }
}

/// An opened log.
pub(crate) struct WriteLog {
    data: Window,
    /// All entries, in the order in which they were logged.
    pub(crate) entries: Vec<Entry>,
    /// Where the next one would be, and how many sectors its head has.
    next: (u64, u64),
}

fn word(bytes: &[u8], n: usize) -> Result<u64> {
    let bytes = bytes.get(n * 8..n * 8 + 8).context("too short")?;
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

impl WriteLog {
    /// Reads the entries; their data stay where they are.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mode = Mode { direct: true, ..Mode::default() };
        let mut data = Window::new(presnap_blockio::open(path, mode)?)?;
        let first = data.get(0, 512)?;
        ensure!(word(first, 0)? == MAGIC && word(first, 1)? == 1, "not a log of dm-log-writes");
        let n = word(first, 2)?;
        let unit = word(first, 3)? & u64::from(u32::MAX);
        ensure!(unit >= 512 && unit % 512 == 0, "sectors of {unit} bytes");
        let per = unit / 512;
        let mut log = Self { data, entries: Vec::new(), next: (per, per) };
        let mut at = per;
        for _ in 0..n {
            let entry = log.entry(at, per)?;
            // Device-mapper sends such a request as two.
            ensure!(entry.flags & FLUSH == 0 || entry.sectors == 0, "a flush with data");
            ensure!(!entry.is_blank(), "an entry is missing");
            at = entry.end();
            log.entries.push(entry);
        }
        log.next = (at, per);
        Ok(log)
    }

    /// Reads on behind the number of entries that the head says, as far as there is something that ends before `sectors`.
    pub(crate) fn read_on(&mut self, sectors: u64) {
        let (mut at, per) = self.next;
        while let Ok(entry) = self.entry(at, per) {
            let beyond = entry.sector.checked_add(entry.sectors).is_none_or(|end| end > sectors);
            if entry.is_blank() || beyond || entry.end() * 512 > self.data.bytes {
                break;
            }
            at = entry.end();
            self.entries.push(entry);
        }
        self.next = (at, per);
    }

    fn entry(&mut self, at: u64, per: u64) -> Result<Entry> {
        let head = self.data.get(at * 512, per as usize * 512)?;
        let (sectors, flags, length) = (word(head, 1)?, word(head, 2)?, word(head, 3)?);
        ensure!(flags < 32 && sectors < 1 << 32, "an entry with flags {flags}, {sectors} sectors");
        let mark = match flags & MARK {
            0 => None,
            _ => {
                let words = head.get(32..32 + length as usize).context("a long mark")?;
                Some(String::from_utf8_lossy(words).into_owned())
            }
        };
        let (sector, sectors) = (word(head, 0)? * per, sectors * per);
        Ok(Entry { at: at + per, sector, sectors, flags, mark })
    }

    /// Where the batch of the flush at `i` begins.
    fn batch(&self, i: usize) -> usize {
        let before = self.entries.get(..i).unwrap_or_default();
        i - before.iter().rev().take_while(|e| e.is_cached()).count()
    }

    /// Hands out what entry `i` left, run by run, of the sectors that `keep` lets through.
    pub(crate) fn apply(
        &mut self,
        i: usize,
        mut keep: impl FnMut(u64) -> bool,
        put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let entry = self.entries.get(i).context("no such entry")?.clone();
        let zeroes = [0; 64 * SECTOR];
        let mut done = 0;
        while done < entry.sectors {
            let left = entry.sectors - done;
            let (n, data) = if entry.flags & DISCARD != 0 {
                (left.min(64), &zeroes[..])
            } else {
                let n = left.min((MAX_IO / SECTOR) as u64);
                (n, self.data.get((entry.at + done) * 512, n as usize * SECTOR)?)
            };
            let mut from = 0;
            while from < n {
                let length = (from..n).take_while(|s| keep(done + s)).count() as u64;
                if length > 0 {
                    let part = from as usize * SECTOR..(from + length) as usize * SECTOR;
                    put(entry.sector + done + from, data.get(part).context("run")?)?;
                }
                from += length + 1;
            }
            done += n;
        }
        Ok(())
    }

    /// What these entries write, in a region that begins at `region`: 0 the intent log, 1 other metadata, 2 none.
    fn class(&self, entries: std::ops::Range<usize>, region: u64) -> usize {
        let class = |e: &Entry| {
            if e.sector < region || e.sectors == 0 {
                return 2;
            }
            match (e.sector - region) / 8 {
                48..112 => 0,
                0..128 => 1,
                // Segments of 4096 blocks begin with 32 of index.
                block if (block - 128) % 4096 < 32 => 1,
                _ => 2,
            }
        };
        let entries = self.entries.get(entries).unwrap_or_default();
        let least = entries.iter().map(class).min().unwrap_or(2);
        // A record that no write to the origin could overtake is like other metadata.
        let record = entries.iter().position(|e| class(e) == 0).unwrap_or(0);
        let origin = |e: &Entry| e.sectors > 0 && e.sector < region;
        let alone = entries.len() > 1 && !entries.iter().skip(record).any(origin);
        if least == 0 && alone {
            return 1;
        }
        least
    }
}

/// Both disks, one behind the other, as the log has them.
pub(crate) struct State(pub(crate) Buffer);

impl State {
    /// Writes to them.
    pub(crate) fn put(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        let from = sector as usize * SECTOR;
        let to = self.0.get_mut(from..from + data.len()).context("a write beyond the end")?;
        for (to, new) in to.chunks_mut(SECTOR).zip(data.chunks(SECTOR)) {
            if !is_newer(to, new) {
                to.copy_from_slice(new);
            }
        }
        Ok(())
    }
}

/// Hands out what is kept of a write: all of it in `percent` of 100 cases, or some sectors.
fn tear(
    log: &mut WriteLog,
    i: usize,
    percent: u64,
    rng: &mut Rng,
    put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    match rng.below(8) {
        0 => {
            // The disk got as far as here, or it took sectors in any order.
            let upto = rng.below(log.entries.get(i).map_or(0, |e| e.sectors) + 1);
            log.apply(i, |s| s < upto, put)
        }
        1 => log.apply(i, |_| rng.chance(percent), put),
        _ if rng.chance(percent) => log.apply(i, |_| true, put),
        _ => Ok(()),
    }
}

/// Hands out what a disk kept of these entries, which were in its cache; of FUA writes among them all.
///
/// Some choices look for orders that somebody relied on: one that alone is missing, or there, and the last ones
/// without the first.
pub(crate) fn lose_cached(
    log: &mut WriteLog,
    entries: &[usize],
    rng: &mut Rng,
    put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let percent = [10, 50, 90][rng.below(3) as usize];
    let chosen = rng.below(entries.len() as u64 + 1) as usize;
    let way = rng.below(6);
    for (n, &i) in entries.iter().enumerate() {
        let whole = match way {
            _ if log.entries.get(i).is_some_and(|e| !e.is_cached()) => true,
            0 => n == chosen,
            1 => n != chosen,
            2 => n >= chosen,
            _ => {
                tear(log, i, percent, rng, put)?;
                false
            }
        };
        if whole {
            log.apply(i, |_| true, put)?;
        }
    }
    Ok(())
}

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Loss {
    /// Nothing that was logged.
    Nothing,
    /// Writes of the batch that the flush would have made durable.
    Batch,
    /// Sectors of the FUA write that follows.
    Fua,
}

/// A power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    /// The entries before this one are durable.
    pub(crate) durable: usize,
    /// Up to here there may be something of them.
    pub(crate) end: usize,
    /// What of the others.
    pub(crate) loss: Loss,
}

/// How often a batch is looked at, at most: each time another part of it is lost.
const MOST_OF_A_BATCH: usize = 4;

/// Chooses `n` power losses after entry `from`, one in three where an intent of the region that begins at `region` is
/// being recorded (and a write to the origin is not yet durable, unless the record is), another where other metadata of it are being written; ascending.
pub(crate) fn choose(
    log: &WriteLog,
    from: usize,
    region: u64,
    n: Option<usize>,
    rng: &mut Rng,
) -> Vec<Point> {
    let mut candidates = [Vec::new(), Vec::new(), Vec::new()];
    for (i, e) in log.entries.iter().enumerate().skip(from) {
        let losses = match e.flags & (FLUSH | FUA) {
            0 => continue,
            FUA => [(i, Loss::Fua), (i + 1, Loss::Nothing)],
            _ if log.batch(i) == i => continue,
            _ => [(log.batch(i).max(from), Loss::Batch), (i + 1, Loss::Nothing)],
        };
        let begin = losses.iter().map(|l| l.0).min().unwrap_or(i);
        let class = log.class(begin..i + 1, region);
        for (durable, loss) in losses {
            // There is more to choose from in a large batch.
            let times = if loss == Loss::Batch { (i - durable).min(MOST_OF_A_BATCH) } else { 1 };
            let point = Point { durable, end: i + 1, loss };
            candidates[class].extend(std::iter::repeat_n(point, times));
        }
    }
    let mut points = Vec::new();
    if let Some(n) = n {
        while points.len() < n && candidates.iter().any(|c| !c.is_empty()) {
            for class in &mut candidates {
                if !class.is_empty() {
                    let at = rng.below(class.len() as u64) as usize;
                    points.push(class.swap_remove(at));
                }
            }
        }
        points.truncate(n);
    } else {
        points = candidates.concat();
    }
    points.sort_unstable();
    points
}

/// Hands out something of what is not durable at the point.
pub(crate) fn lose(
    log: &mut WriteLog,
    point: Point,
    rng: &mut Rng,
    put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    match point.loss {
        Loss::Nothing => Ok(()),
        Loss::Batch => {
            let batch: Vec<usize> = (point.durable..point.end).collect();
            lose_cached(log, &batch, rng, put)
        }
        Loss::Fua => tear(log, point.durable, [10, 50, 90, 97][rng.below(4) as usize], rng, put),
    }
}

#[cfg(test)]
#[path = "writelog_tests.rs"]
mod tests;
