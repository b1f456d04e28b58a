// SPDX-License-Identifier: GPL-2.0-only

//! A disk, with or without a volatile write cache, and what is left of it when power fails.
//!
//! With a cache, a write that has ended is in the cache only, unless it asked for FUA. A preflush makes
//! durable what had ended before it was submitted, and comes before the request's own data. Without a cache
//! a write that has ended is durable, and both mean nothing.
//!
//! When power fails, each write that is not durable, ended or not, is there whole, in part, at the
//! borders of sectors, or not at all. Of writes to the same sector, any may be the one that is there.

use crate::blocks::{Blocks, Content};
use fastrand::Rng;
use std::collections::BTreeMap;

/// What a request asks for.
#[derive(Clone)]
pub enum Op {
    /// Data.
    Read,
    /// Writing, zeroing or discarding; what was discarded reads as zeroes.
    Write(Content),
    /// That what has ended is durable.
    Flush,
}

/// How a request ended: the data of a read.
pub type Outcome = Result<Vec<u8>, Failed>;

/// A request failed.
#[derive(Clone, Copy, Debug)]
pub struct Failed;

/// What is to be called when a request has ended.
pub type Done = Box<dyn FnOnce(Outcome)>;

/// A request.
pub struct Request {
    /// What for.
    pub op: Op,
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u64,
    /// Before it, all that has ended is made durable.
    pub preflush: bool,
    /// When it has ended, it is durable.
    pub fua: bool,
    /// Told of the end.
    pub done: Done,
}

/// How long requests take, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// At least.
    pub least_ns: u64,
    /// Up to so much more.
    pub spread_ns: u64,
    /// One in so many takes 20 times as long; 0 for none.
    pub slow_one_in: u32,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// So many reads in 10000 fail.
    pub reads: u32,
    /// So many writes and flushes in 10000 fail.
    pub writes: u32,
    /// Everything fails.
    pub dead: bool,
}

/// A step of a request.
#[derive(Clone, Copy, Debug)]
pub enum DiskEvent {
    /// The preflush is done.
    Flushed(u64),
    /// Some sectors have been written, the others not yet.
    Half(u64),
    /// The end.
    Ended(u64),
}

/// A request in flight.
struct Flight {
    request: Request,
    /// The preflush is not done: no data has been written.
    flush_first: bool,
    /// The number of requests that had ended when it was submitted.
    ended_before: u64,
    /// The sectors written so far, and when.
    half: Option<(Vec<bool>, u64)>,
    /// A read takes its data when it ends, or each sector then or at once, as chance wants.
    early: Option<Vec<u8>>,
    fails: bool,
}

/// A write, or part of one, in the cache.
struct Cached {
    /// Writes of a sector are in this order.
    seq: u64,
    /// When the request ended, in the order of ends.
    ended: u64,
    sector: u64,
    sectors: u64,
    content: Content,
    /// `None` for all sectors.
    mask: Option<Vec<bool>>,
}

impl Cached {
    fn has(&self, i: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask[i])
    }
}

/// A disk.
pub struct Disk {
    cached: bool,
    speed: Speed,
    /// What goes wrong, from now on.
    pub faults: Faults,
    /// What reads see.
    current: Blocks,
    /// What is left when power fails, at least.
    durable: Blocks,
    /// Of each durable sector, which write it is.
    durable_seq: Vec<u64>,
    cache: Vec<Cached>,
    flights: BTreeMap<u64, Flight>,
    next_id: u64,
    seq: u64,
    ended: u64,
}

/// What is left of the cache when power fails.
#[derive(Clone, Copy)]
enum Loss {
    All,
    Nothing,
    /// What was written last.
    Last(usize),
    Random,
}

impl Disk {
    /// A disk with this content, all of it durable.
    pub fn new(content: Blocks, cached: bool, speed: Speed) -> Self {
        Self {
            cached,
            speed,
            faults: Faults::default(),
            durable_seq: vec![0; content.sectors() as usize],
            durable: content.clone(),
            current: content,
            cache: Vec::new(),
            flights: BTreeMap::new(),
            next_id: 0,
            seq: 0,
            ended: 0,
        }
    }

    /// Whether it has a volatile write cache.
    pub fn cached(&self) -> bool {
        self.cached
    }

    /// Size.
    pub fn sectors(&self) -> u64 {
        self.current.sectors()
    }

    /// Makes it larger.
    pub fn grow(&mut self, blocks: u64) {
        self.current.grow(blocks);
        // What is new has one content, whatever is in the cache.
        self.durable.extend(&self.current);
        self.durable_seq.resize(self.current.sectors() as usize, 0);
    }

    /// What a read would see.
    pub fn current(&self) -> &Blocks {
        &self.current
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Writes, discards and zeroing in flight.
    pub fn writes_in_flight(&self) -> usize {
        self.flights.values().filter(|f| matches!(f.request.op, Op::Write(_))).count()
    }

    fn delay(&self, rng: &mut Rng) -> u64 {
        let ns = self.speed.least_ns + rng.u64(..self.speed.spread_ns.max(1));
        let slow = self.speed.slow_one_in > 0 && rng.u32(..self.speed.slow_one_in) == 0;
        if slow {
            ns * 20
        } else {
            ns
        }
    }

    /// Takes a request in; returns what is going to happen, and when.
    pub(crate) fn submit(
        &mut self,
        now: u64,
        mut request: Request,
        rng: &mut Rng,
    ) -> Vec<(u64, DiskEvent)> {
        let inside = request.sector + request.sectors <= self.sectors();
        let chance = match request.op {
            Op::Read => self.faults.reads,
            _ => self.faults.writes,
        };
        let fails = !inside || self.faults.dead || (chance > 0 && rng.u32(..10_000) < chance);
        if !self.cached {
            request.preflush = false;
            request.fua = true;
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut events = Vec::new();
        let mut time = now + self.delay(rng);
        let is_write = matches!(request.op, Op::Write(_));
        let flush_first = request.preflush && is_write;
        if flush_first {
            events.push((time, DiskEvent::Flushed(id)));
            time += self.delay(rng);
        }
        if is_write && request.sectors > 1 && rng.u32(..4) == 0 {
            events.push((time, DiskEvent::Half(id)));
            time += self.delay(rng);
        }
        events.push((time, DiskEvent::Ended(id)));
        let mut early = None;
        if inside && matches!(request.op, Op::Read) && rng.bool() {
            early = Some(self.current.read(request.sector, request.sectors));
        }
        let ended_before = self.ended;
        let flight = Flight { request, flush_first, ended_before, half: None, early, fails };
        self.flights.insert(id, flight);
        events
    }

    /// Lets a step happen; of the last one, whom to tell what.
    pub(crate) fn happen(&mut self, event: DiskEvent, rng: &mut Rng) -> Option<(Done, Outcome)> {
        match event {
            DiskEvent::Flushed(id) => {
                let flight = self.flights.get_mut(&id)?;
                if !flight.fails {
                    flight.flush_first = false;
                    let before = flight.ended_before;
                    self.flush(before);
                }
                None
            }
            DiskEvent::Half(id) => {
                let seq = self.next_seq();
                let flight = self.flights.get_mut(&id)?;
                if flight.flush_first {
                    return None;
                }
                let Op::Write(content) = &flight.request.op else { return None };
                let mask: Vec<bool> = (0..flight.request.sectors).map(|_| rng.bool()).collect();
                let (sector, sectors) = (flight.request.sector, flight.request.sectors);
                self.current.apply(sector, sectors, content, |i| mask[i]);
                flight.half = Some((mask, seq));
                None
            }
            DiskEvent::Ended(id) => {
                let flight = self.flights.remove(&id)?;
                Some(self.end(flight, rng))
            }
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn end(&mut self, flight: Flight, rng: &mut Rng) -> (Done, Outcome) {
        let Flight { request, flush_first, ended_before, half, early, fails } = flight;
        let mut outcome = if fails { Err(Failed) } else { Ok(Vec::new()) };
        match request.op {
            Op::Read if !fails => {
                let mut data = self.current.read(request.sector, request.sectors);
                if let Some(early) = early.filter(|early| *early != data) {
                    let size = crate::blocks::SECTOR;
                    for (a, b) in data.chunks_exact_mut(size).zip(early.chunks_exact(size)) {
                        if rng.bool() {
                            a.copy_from_slice(b);
                        }
                    }
                }
                outcome = Ok(data);
            }
            Op::Flush if !fails => self.flush(ended_before),
            Op::Read | Op::Flush => {}
            Op::Write(content) => {
                let (sector, sectors) = (request.sector, request.sectors);
                self.ended += 1;
                let ended = self.ended;
                let mut parts = Vec::new();
                let mut rest: Option<Vec<bool>> = None;
                if let Some((mask, seq)) = half {
                    rest = Some(mask.iter().map(|written| !written).collect());
                    parts.push((seq, Some(mask)));
                }
                let seq = self.next_seq();
                if fails {
                    // Some of it may have been written all the same.
                    let none = flush_first || sector + sectors > self.sectors();
                    let mask = rest.unwrap_or_else(|| vec![true; sectors as usize]);
                    let some = !none && rng.bool();
                    rest = Some(mask.iter().map(|&may| may && some && rng.bool()).collect());
                    if none {
                        return (request.done, outcome);
                    }
                }
                self.current
                    .apply(sector, sectors, &content, |i| rest.as_ref().is_none_or(|mask| mask[i]));
                parts.push((seq, rest));
                for (seq, mask) in parts {
                    let part =
                        Cached { seq, ended, sector, sectors, content: content.clone(), mask };
                    if request.fua && !fails {
                        Self::settle(&mut self.durable, &mut self.durable_seq, &part);
                    } else {
                        self.cache.push(part);
                    }
                }
            }
        }
        (request.done, outcome)
    }

    fn settle(durable: &mut Blocks, durable_seq: &mut [u64], part: &Cached) {
        durable.apply(part.sector, part.sectors, &part.content, |i| {
            let known = &mut durable_seq[part.sector as usize + i];
            let newer = part.has(i) && part.seq > *known;
            if newer {
                *known = part.seq;
            }
            newer
        });
    }

    /// Makes durable what had ended by then.
    fn flush(&mut self, ended_before: u64) {
        let (old, rest) = self.cache.drain(..).partition(|part| part.ended <= ended_before);
        self.cache = rest;
        let old: Vec<Cached> = old;
        for part in &old {
            Self::settle(&mut self.durable, &mut self.durable_seq, part);
        }
    }

    /// What is left when power fails now.
    pub fn crash(&self, rng: &mut Rng) -> Blocks {
        let mut left = self.durable.clone();
        let mut cached: Vec<&Cached> = self.cache.iter().collect();
        cached.sort_by_key(|part| part.seq);
        let loss = match rng.u32(..8) {
            0 => Loss::All,
            1 => Loss::Nothing,
            2 => Loss::Last(rng.usize(..=cached.len())),
            _ => Loss::Random,
        };
        for (n, part) in cached.iter().enumerate() {
            let keep = match loss {
                Loss::All => Keep::Nothing,
                Loss::Nothing => Keep::All,
                Loss::Last(first) if n >= first => Keep::Nothing,
                Loss::Last(_) => Keep::All,
                Loss::Random => Keep::random(rng),
            };
            left.apply(part.sector, part.sectors, &part.content, |i| {
                part.has(i)
                    && part.seq > self.durable_seq[part.sector as usize + i]
                    && keep.sector(rng)
            });
        }
        for flight in self.flights.values() {
            let Op::Write(content) = &flight.request.op else { continue };
            if flight.flush_first || flight.request.sector + flight.request.sectors > self.sectors()
            {
                continue;
            }
            let keep = Keep::random(rng);
            left.apply(flight.request.sector, flight.request.sectors, content, |_| {
                keep.sector(rng)
            });
        }
        left
    }
}

/// What is left of one write.
#[derive(Clone, Copy)]
enum Keep {
    All,
    Nothing,
    Torn,
}

impl Keep {
    fn random(rng: &mut Rng) -> Self {
        match rng.u32(..5) {
            0 | 1 => Self::All,
            2 | 3 => Self::Nothing,
            _ => Self::Torn,
        }
    }

    fn sector(self, rng: &mut Rng) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Torn => rng.bool(),
        }
    }
}
