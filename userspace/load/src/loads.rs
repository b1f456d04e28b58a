// SPDX-License-Identifier: GPL-2.0-only

//! What each load does next.

use crate::zipf::Zipf;
use crate::Load;
use fastrand::Rng;

const PAGE: u64 = 4096;
/// Random places drawn before the start; the run goes round in them, from another one each time.
const DRAWN: usize = 1 << 19;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes with FUA.
    WriteDurable,
    /// Flushes.
    Flush,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What.
    pub(crate) op: Op,
    /// Where, bytes.
    pub(crate) offset: u64,
    /// How much, bytes.
    pub(crate) len: u32,
}

/// The source of requests.
pub(crate) struct Plan {
    load: Load,
    span: u64,
    /// First bytes of the log, in `mixed`.
    log_start: u64,
    log_at: u64,
    places: Vec<u32>,
    next: usize,
    sequence: u64,
    reads: u32,
    rng: Rng,
    since_flush: u32,
}

impl Plan {
    /// Draws everything that is random about places.
    pub(crate) fn new(
        load: Load,
        span: u64,
        theta: f64,
        cluster: u32,
        reads: u32,
        seed: u64,
    ) -> Self {
        let mut rng = Rng::with_seed(seed);
        let log_start = if load == Load::Mixed { span / 16 * 15 / PAGE * PAGE } else { span };
        // Pages of up to 16 KiB must fit before the log.
        let pages = log_start / PAGE - 3;
        let cluster = u64::from(cluster);
        let groups = (pages / cluster).max(1);
        let mut places = Vec::new();
        if matches!(load, Load::Zipf | Load::Mixed) {
            let zipf = Zipf::new(groups, theta);
            let step = coprime(groups);
            for _ in 0..DRAWN {
                // Hot groups are spread over the whole span.
                let group = zipf.draw(&mut rng) * step % groups;
                places.push((group * cluster + rng.u64(..cluster)) as u32);
            }
        }
        Self {
            load,
            span,
            log_start,
            log_at: log_start,
            places,
            next: 0,
            sequence: 0,
            reads,
            rng,
            since_flush: 0,
        }
    }

    /// Bytes of the largest request.
    pub(crate) fn max_bytes(&self) -> usize {
        match self.load {
            Load::Zipf => 4096,
            Load::Mixed => 16384,
            Load::Seq => 65536,
            Load::Fill => 1 << 20,
        }
    }

    fn place(&mut self) -> u64 {
        if self.next == self.places.len() {
            self.next = 0;
        }
        let page = self.places.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        u64::from(page) * PAGE
    }

    /// The next request for the place `slot` in the queue; `None` at the end.
    pub(crate) fn next(&mut self, slot: usize) -> Option<Request> {
        match self.load {
            Load::Zipf => Some(Request { op: Op::Write, offset: self.place(), len: 4096 }),
            Load::Seq => {
                let offset = self.sequence;
                self.sequence = if offset + 2 * 65536 > self.span { 0 } else { offset + 65536 };
                Some(Request { op: Op::Write, offset, len: 65536 })
            }
            Load::Fill => {
                let offset = self.sequence;
                let len = (self.span - offset).min(1 << 20) as u32;
                self.sequence += u64::from(len);
                (len > 0).then_some(Request { op: Op::Write, offset, len })
            }
            // One log writer, which waits for each of its writes; the others write and read pages.
            Load::Mixed if slot == 0 => Some(self.log()),
            Load::Mixed => {
                let dice = self.rng.u64(..) >> 32;
                let offset = self.place();
                let reads = u64::from(self.reads);
                if dice % 100 < reads {
                    return Some(Request { op: Op::Read, offset, len: 4096 });
                }
                let len = [4096, 8192, 8192, 16384][(dice >> 8) as usize % 4];
                Some(Request { op: Op::Write, offset, len })
            }
        }
    }

    fn log(&mut self) -> Request {
        self.since_flush += 1;
        if self.since_flush == 256 {
            self.since_flush = 0;
            return Request { op: Op::Flush, offset: 0, len: 0 };
        }
        let len = 4096 * (1 + (self.rng.u64(..) >> 40) as u32 % 2);
        if self.log_at + u64::from(len) > self.span {
            self.log_at = self.log_start;
        }
        let offset = self.log_at;
        self.log_at += u64::from(len);
        Request { op: Op::WriteDurable, offset, len }
    }
}

/// A number near the golden section of `n` without a common divisor: multiples of it visit all residues.
fn coprime(n: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let from = (n as f64 * 0.618) as u64;
    (from.max(1)..).find(|&k| gcd(k, n) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn requests_stay_inside_and_look_like_their_load() {
        let span = 64 << 20;
        for load in [Load::Zipf, Load::Seq, Load::Mixed, Load::Fill] {
            let mut plan = Plan::new(load, span, 1.1, 4, 25, 7);
            let (mut reads, mut writes, mut durable) = (0, 0, 0);
            for i in 0..100_000 {
                let Some(r) = plan.next(i % 16) else { break };
                assert!(r.offset % PAGE == 0 && r.offset + u64::from(r.len) <= span, "{r:?}");
                assert!(r.len as usize <= plan.max_bytes());
                match r.op {
                    Op::Read => reads += 1,
                    Op::Write => writes += 1,
                    Op::WriteDurable => durable += 1,
                    Op::Flush => {}
                }
            }
            match load {
                Load::Fill => assert_eq!(writes, 64),
                Load::Mixed => {
                    assert!((20_000..27_000).contains(&reads) && durable > 6000 && writes > 60_000);
                }
                _ => assert_eq!((reads, durable, writes), (0, 0, 100_000)),
            }
        }
    }

    #[test]
    fn the_spreading_is_a_permutation() {
        for n in [1u64, 2, 10, 4096, 99_991] {
            let step = coprime(n);
            let seen: HashSet<u64> = (0..n).map(|k| k * step % n).collect();
            assert_eq!(seen.len() as u64, n);
        }
    }
}
