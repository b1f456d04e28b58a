// SPDX-License-Identifier: GPL-2.0-only

//! What was written: one entry a write, with the stamps of its submission and its completion.
//!
//! Stamps come from one global counter, taken just before the system call and just after its return, so
//! that `a.complete < b.submit` says: `a` was over before `b` began. The stamp of submission is also the
//! name of a write, and stands in each sector it wrote.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stamp of a write that has not completed (or failed, which leaves open whether it took place).
pub(crate) const PENDING: u64 = u64::MAX;

/// What a write does to the sectors it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Leaves sectors that carry its stamp.
    Data,
    /// Leaves zeroes.
    Zero,
    /// Leaves zeroes or what was there: a discard on a device that does not promise zeroes.
    MaybeZero,
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    /// Stamp taken before it was submitted; its name.
    pub(crate) submit: u64,
    /// Stamp taken after it completed, or [`PENDING`].
    pub(crate) complete: u64,
    /// First sector.
    pub(crate) sector: u32,
    /// Number of sectors.
    pub(crate) sectors: u32,
    /// What it leaves.
    pub(crate) kind: Kind,
    /// The device got it as one request, so an image has all of it or nothing.
    pub(crate) whole: bool,
    /// Which thread.
    pub(crate) writer: u16,
}

impl std::fmt::Display for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Data => "write",
            Kind::Zero => "zeroing",
            Kind::MaybeZero => "discard",
        };
        write!(
            f,
            "{kind} #{} of thread {} (sectors {}+{}, ",
            self.submit, self.writer, self.sector, self.sectors
        )?;
        if self.complete == PENDING {
            write!(f, "not completed)")
        } else {
            write!(f, "completed at {})", self.complete)
        }
    }
}

/// What was made durable.
#[derive(Clone, Default)]
pub(crate) struct Durable {
    /// Names of writes that were durable when they completed.
    pub(crate) at_once: Vec<u64>,
    /// Stamps around flushes: what completed before the first is durable at the second.
    pub(crate) flushes: Vec<(u64, u64)>,
}

/// The log of all threads, the clock, and the bound on both.
pub(crate) struct History {
    clock: AtomicU64,
    durable: Mutex<Durable>,
    logs: Vec<Mutex<Vec<Write>>>,
    /// Sum of the sectors of all entries held, the measure of memory.
    held_sectors: AtomicU64,
    max_sectors: u64,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl History {
    /// A history for `writers` threads that asks writers to pause beyond `max_sectors` sectors of entries.
    pub(crate) fn new(writers: usize, max_sectors: u64) -> Self {
        Self {
            clock: AtomicU64::new(1),
            durable: Mutex::default(),
            logs: (0..writers).map(|_| Mutex::new(Vec::new())).collect(),
            held_sectors: AtomicU64::new(0),
            max_sectors,
        }
    }

    /// Takes a stamp: later than all stamps taken before this call began.
    pub(crate) fn stamp(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Whether the history is full, so that writers should wait for verification.
    pub(crate) fn is_full(&self) -> bool {
        self.held_sectors.load(Ordering::Relaxed) > self.max_sectors
    }

    /// Enters a write before it is submitted; returns its stamp.
    pub(crate) fn begin(&self, writer: u16, sector: u64, sectors: u64, kind: Kind) -> u64 {
        self.enter(writer, sector, sectors, kind, false)
    }

    /// The same for data that the device gets as one request.
    pub(crate) fn begin_whole(&self, writer: u16, sector: u64, sectors: u64) -> u64 {
        self.enter(writer, sector, sectors, Kind::Data, true)
    }

    fn enter(&self, writer: u16, sector: u64, sectors: u64, kind: Kind, whole: bool) -> u64 {
        let Some(log) = self.logs.get(usize::from(writer)) else { return 0 };
        self.held_sectors.fetch_add(sectors, Ordering::Relaxed);
        // The stamp is taken under the lock: whoever copies the log afterwards has all writes stamped before.
        let mut log = lock(log);
        let submit = self.stamp();
        log.push(Write {
            submit,
            complete: PENDING,
            sector: sector as u32,
            sectors: sectors as u32,
            kind,
            whole,
            writer,
        });
        submit
    }

    /// Marks a write of `writer` as completed now.
    pub(crate) fn complete(&self, writer: u16, submit: u64) {
        let Some(log) = self.logs.get(usize::from(writer)) else { return };
        // Under the lock, so that a copy made after a stamp has all completions stamped before it.
        let mut log = lock(log);
        let stamp = self.stamp();
        // Entries split by pruning keep their name; all parts complete together. Parts stand near the end.
        for w in log.iter_mut().rev() {
            if w.submit == submit {
                w.complete = stamp;
            } else if w.submit < submit {
                break;
            }
        }
    }

    /// Notes that a write was durable when it completed.
    pub(crate) fn durable(&self, submit: u64) {
        lock(&self.durable).at_once.push(submit);
    }

    /// Notes that a flush, sent after the stamp `begin`, is over.
    pub(crate) fn flushed(&self, begin: u64) {
        let end = self.stamp();
        lock(&self.durable).flushes.push((begin, end));
    }

    /// A copy of what was made durable.
    pub(crate) fn copy_durable(&self) -> Durable {
        lock(&self.durable).clone()
    }

    /// A copy of all entries, at the instant of the call.
    pub(crate) fn copy(&self) -> Vec<Write> {
        let mut all = Vec::new();
        for log in &self.logs {
            all.extend_from_slice(&lock(log));
        }
        all
    }

    /// Replaces the entries completed before `before` by `kept`, the part of them that still matters.
    ///
    /// `kept` must have been made from a [`History::copy`] of at least those entries.
    pub(crate) fn replace(&self, before: u64, kept: &[Write]) {
        let mut held = 0;
        for (writer, log) in self.logs.iter().enumerate() {
            let mut new: Vec<Write> =
                kept.iter().filter(|w| usize::from(w.writer) == writer).copied().collect();
            let mut log = lock(log);
            new.extend(log.iter().filter(|w| w.complete >= before));
            // Ordered by name, which `complete` relies on.
            new.sort_by_key(|w| (w.submit, w.sector));
            held += new.iter().map(|w| u64::from(w.sectors)).sum::<u64>();
            *log = new;
        }
        self.held_sectors.store(held, Ordering::Relaxed);
    }
}
