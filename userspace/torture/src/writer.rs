// SPDX-License-Identifier: GPL-2.0-only

//! The writers: threads of random mixed I/O, each with a zone of its own, a share of a zone interleaved by
//! sectors, and a zone where all write over each other.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::device::{Buffer, Device, Way, MAX_IO, WHOLE_SECTORS};
use crate::history::{History, Kind};
use crate::rng::Rng;
use crate::sector::{fill, inspect, Seen, SECTOR};

/// "Operation not supported", as Linux numbers it nearly everywhere.
const EOPNOTSUPP: i32 = 95;
/// Sectors of a page.
const PAGE: u64 = 8;
/// A sector whose content the thread does not know for sure.
const UNKNOWN: u64 = u64::MAX;

/// What a discard leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    /// Zeroes, always.
    Zeroes,
    /// Zeroes or the old content.
    Maybe,
    /// Not supported.
    None,
}

/// What all writers share.
pub(crate) struct Shared {
    pub(crate) device: Device,
    pub(crate) history: History,
    pub(crate) run: u64,
    pub(crate) threads: u64,
    pub(crate) discard: Discard,
    /// The device has refused a discard as unsupported.
    pub(crate) no_discard: AtomicBool,
    pub(crate) zeroout: bool,
    /// Short direct writes reach the device whole: it is a block device.
    pub(crate) whole: bool,
    pub(crate) pause: Duration,
    /// Stamps tell the order of writes: no two overlap in time and place, and zeroes are flushed.
    pub(crate) ordered: bool,
    pub(crate) stop: AtomicBool,
    pub(crate) counts: Counts,
}

/// Counters of what was done.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) writes: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) zeroes: AtomicU64,
    pub(crate) discards: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) errors: AtomicU64,
    /// Reads that did not give what the thread had written.
    pub(crate) read_violations: AtomicU64,
}

impl Counts {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// The zones of the device, in sectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zones {
    /// Size of each thread's own zone; zone t starts at `t * own`.
    pub(crate) own: u64,
    /// The zone in which sector s belongs to thread s % threads.
    pub(crate) mixed: (u64, u64),
    /// The zone in which all write over each other.
    pub(crate) shared: (u64, u64),
}

impl Zones {
    /// Divides `sectors` among `threads`; logical blocks above 512 bytes leave no interleaved zone.
    pub(crate) fn new(sectors: u64, threads: u64, unit: u64) -> Self {
        let shared = sectors / 10 / PAGE * PAGE;
        let mixed = if unit == 1 { sectors / 20 / PAGE * PAGE } else { 0 };
        let own = (sectors - shared - mixed) / threads / PAGE * PAGE;
        Self { own, mixed: (sectors - shared - mixed, mixed), shared: (sectors - shared, shared) }
    }
}

/// How a thread behaves, so that there is something to predict and something that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Anything anywhere.
    Random,
    /// Through the page cache, made durable every few writes.
    Buffered,
    /// Streams.
    Sequential,
    /// Small writes to a few hot places.
    Hot,
}

/// One writer.
pub(crate) struct Writer<'a> {
    s: &'a Shared,
    id: u16,
    habit: Habit,
    rng: Rng,
    zones: Zones,
    start: u64,
    /// The stamp last written to each sector of the own zone (0: zeroes).
    mine: Vec<u64>,
    buffer: Buffer,
    stream: u64,
    /// Buffered writes since the last flush: their stamps, and the pages not to be touched again before it.
    epoch: Vec<u64>,
    epoch_pages: HashSet<u64>,
}

impl<'a> Writer<'a> {
    /// Writer number `id`; `mine` says what its zone holds at the start.
    pub(crate) fn new(s: &'a Shared, id: u16, seed: u64, zones: Zones, mine: Vec<u64>) -> Self {
        let habit =
            [Habit::Random, Habit::Buffered, Habit::Hot, Habit::Sequential][usize::from(id) % 4];
        Self {
            s,
            id,
            habit,
            rng: Rng::new(seed ^ (u64::from(id) + 1) << 40),
            zones,
            start: u64::from(id) * zones.own,
            mine,
            buffer: Buffer::new(MAX_IO),
            stream: 0,
            epoch: Vec::new(),
            epoch_pages: HashSet::new(),
        }
    }

    /// Works until told to stop.
    pub(crate) fn run(&mut self) {
        while !self.s.stop.load(Ordering::Relaxed) {
            if self.s.history.is_full() {
                self.end_epoch();
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            self.step();
            if !self.s.pause.is_zero() {
                std::thread::sleep(self.s.pause);
            }
        }
        self.end_epoch();
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=14 => self.read(),
            15..=17 => {
                self.end_epoch();
                self.flush();
            }
            18..=20 => self.zero(),
            21..=23 => self.discard(),
            24..=31 if self.habit != Habit::Buffered && !self.s.ordered => self.write_shared(),
            32..=37 if self.habit != Habit::Buffered => self.write_mixed(),
            _ => self.write_own(),
        }
    }

    /// A length in sectors: from one logical block to 1 MiB, small ones more often, odd ones too.
    fn length(&mut self) -> u64 {
        let unit = self.s.device.unit;
        let n = match self.rng.below(100) {
            0..=24 => 1 + self.rng.below(7),
            25..=59 => PAGE,
            60..=79 => PAGE * (1 + self.rng.below(16)),
            80..=94 => 1 + self.rng.below(256),
            _ => 1 + self.rng.below(2048),
        };
        n.next_multiple_of(unit)
    }

    /// Where in the own zone the next request goes: offset and length in sectors.
    fn place(&mut self) -> (u64, u64) {
        let own = self.zones.own;
        let unit = self.s.device.unit;
        match self.habit {
            Habit::Sequential if self.rng.chance(90) => {
                let n = 128.min(own);
                if self.stream + n > own || self.rng.below(400) == 0 {
                    self.stream = self.rng.below(own - n) / PAGE * PAGE;
                }
                let at = self.stream;
                self.stream += n;
                (at, n)
            }
            Habit::Hot if self.rng.chance(90) => {
                let n = PAGE * (1 + self.rng.below(4));
                let hot = (own / 20).max(n + PAGE);
                (self.rng.below(hot - n) / PAGE * PAGE, n)
            }
            _ => {
                let n = self.length().min(own);
                let align = if self.rng.chance(50) { unit } else { PAGE };
                (self.rng.below(own - n + 1) / align * align, n)
            }
        }
    }

    fn note(&self, what: &str, sector: u64, n: u64, e: &io::Error) {
        if self.s.counts.errors.fetch_add(1, Ordering::Relaxed) < 20 {
            eprintln!("thread {}: {what} of sectors {sector}+{n}: {e}", self.id);
        }
    }

    fn expect(&mut self, offset: u64, n: u64, stamp: u64) {
        self.mine[offset as usize..(offset + n) as usize].fill(stamp);
    }

    /// Writes and waits; returns what the sectors hold now.
    fn write_at(&mut self, way: Way, sector: u64, n: u64) -> u64 {
        let s = self.s;
        let stamp = if way != Way::Buffered && n <= WHOLE_SECTORS && s.whole {
            s.history.begin_whole(self.id, sector, n)
        } else {
            s.history.begin(self.id, sector, n, Kind::Data)
        };
        let data = self.buffer.slice(n as usize * SECTOR);
        fill(data, sector, stamp, s.run, u32::from(self.id), way as u32);
        match s.device.write(way, sector, data) {
            Ok(()) => {
                Counts::add(&s.counts.writes, 1);
                Counts::add(&s.counts.bytes, n * SECTOR as u64);
                if way != Way::Buffered {
                    s.history.complete(self.id, stamp);
                }
                if way == Way::Fua {
                    s.history.durable(stamp);
                }
                stamp
            }
            Err(e) => {
                self.note("write", sector, n, &e);
                UNKNOWN
            }
        }
    }

    fn write_own(&mut self) {
        let (offset, n) = self.place();
        let sector = self.start + offset;
        if self.habit != Habit::Buffered {
            let way = if self.rng.chance(10) { Way::Fua } else { Way::Direct };
            let stamp = self.write_at(way, sector, n);
            return self.expect(offset, n, stamp);
        }
        // A page under write-back must not change, or the device may rightly see a torn sector.
        let pages = sector / PAGE..=(sector + n - 1) / PAGE;
        if pages.clone().any(|p| self.epoch_pages.contains(&p)) {
            self.end_epoch();
        }
        self.epoch_pages.extend(pages);
        let stamp = self.write_at(Way::Buffered, sector, n);
        self.expect(offset, n, stamp);
        if stamp != UNKNOWN {
            self.epoch.push(stamp);
        }
        if self.epoch.len() as u64 > 2 + self.rng.below(30) {
            self.end_epoch();
        }
    }

    /// Makes the buffered writes durable: only then are they complete for the device.
    fn end_epoch(&mut self) {
        if self.epoch.is_empty() && self.epoch_pages.is_empty() {
            return;
        }
        match self.s.device.flush() {
            Ok(()) => {
                for stamp in self.epoch.drain(..) {
                    self.s.history.complete(self.id, stamp);
                    self.s.history.durable(stamp);
                }
            }
            Err(e) => {
                self.note("fdatasync", self.start, 0, &e);
                self.epoch.clear();
            }
        }
        self.epoch_pages.clear();
    }

    fn write_shared(&mut self) {
        let (start, size) = self.zones.shared;
        let n = self.length().min(size);
        let unit = self.s.device.unit;
        let at = start + self.rng.below(size - n + 1) / unit * unit;
        let way = if self.rng.chance(10) { Way::Fua } else { Way::Direct };
        self.write_at(way, at, n);
    }

    fn write_mixed(&mut self) {
        let (start, size) = self.zones.mixed;
        let slots = size / self.s.threads;
        if slots == 0 {
            return self.write_own();
        }
        let at = start + self.rng.below(slots) * self.s.threads + u64::from(self.id);
        self.write_at(Way::Direct, at, 1);
    }

    fn zero(&mut self) {
        if !self.s.zeroout {
            return self.write_own();
        }
        self.end_epoch();
        let (offset, n) = self.place();
        let sector = self.start + offset;
        let stamp = self.s.history.begin(self.id, sector, n, Kind::Zero);
        let left = match self.s.device.zero(sector, n) {
            Ok(()) => {
                self.s.history.complete(self.id, stamp);
                Counts::add(&self.s.counts.zeroes, 1);
                self.flush_zeroes();
                0
            }
            Err(e) => {
                self.note("write-zeroes", sector, n, &e);
                UNKNOWN
            }
        };
        self.expect(offset, n, left);
    }

    fn discard(&mut self) {
        let kind = match self.s.discard {
            Discard::Zeroes => Kind::Zero,
            Discard::Maybe => Kind::MaybeZero,
            Discard::None => return self.write_own(),
        };
        if self.s.no_discard.load(Ordering::Relaxed) {
            return self.write_own();
        }
        self.end_epoch();
        let (offset, n) = self.place();
        // Whole pages: smaller discards are often dropped by devices, which the history could not tell.
        let (offset, n) = (offset.next_multiple_of(PAGE), n.next_multiple_of(PAGE));
        if offset + n > self.zones.own {
            return;
        }
        let sector = self.start + offset;
        let stamp = self.s.history.begin(self.id, sector, n, kind);
        let left = match self.s.device.discard(sector, n) {
            Ok(()) => {
                self.s.history.complete(self.id, stamp);
                Counts::add(&self.s.counts.discards, 1);
                self.flush_zeroes();
                if kind == Kind::Zero {
                    0
                } else {
                    UNKNOWN
                }
            }
            Err(e) if e.raw_os_error() == Some(EOPNOTSUPP) => {
                self.s.no_discard.store(true, Ordering::Relaxed);
                UNKNOWN
            }
            Err(e) => {
                self.note("discard", sector, n, &e);
                UNKNOWN
            }
        };
        self.expect(offset, n, left);
    }

    fn flush_zeroes(&mut self) {
        if self.s.ordered {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let begin = self.s.history.stamp();
        match self.s.device.flush() {
            Ok(()) => {
                self.s.history.flushed(begin);
                Counts::add(&self.s.counts.flushes, 1);
            }
            Err(e) => self.note("flush", 0, 0, &e),
        }
    }

    /// Reads of the own zone must give exactly what was written last.
    fn read(&mut self) {
        let (offset, n) = self.place();
        let sector = self.start + offset;
        let way = if self.habit == Habit::Buffered { Way::Buffered } else { Way::Direct };
        let out = self.buffer.slice(n as usize * SECTOR);
        if let Err(e) = self.s.device.read(way, sector, out) {
            return self.note("read", sector, n, &e);
        }
        Counts::add(&self.s.counts.reads, 1);
        for (i, bytes) in out.chunks_exact(SECTOR).enumerate() {
            let want = match self.mine[offset as usize + i] {
                UNKNOWN => continue,
                0 => Seen::Zero,
                n => Seen::Stamp(n),
            };
            let address = sector + i as u64;
            let got = inspect(bytes, address, self.s.run);
            if got != want && self.s.counts.read_violations.fetch_add(1, Ordering::Relaxed) < 20 {
                eprintln!("VIOLATION: read of sector {address}: expected {want:?}, found {got:?}");
            }
        }
    }
}
