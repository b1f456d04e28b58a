// SPDX-License-Identifier: GPL-2.0-only

//! The worker: the one thread of a device that copies, writes metadata and carries out what the
//! snapshot's state machine says. Everything here belongs to it alone, so it needs no locks.
//!
//! It never waits for I/O: it starts reads and writes, sleeps, and takes their results. One pass
//! takes what has ended, then does what can be done now.

mod copy;
mod drain;
mod freeze;
mod grow;
mod guard;
mod index;
mod intent;
mod remove;
mod room;
mod root;
mod seal;
pub(crate) mod seat;
mod settle;
mod stage;

use crate::device::{Device, Health};
use crate::region::IndexState;
use copy::Jobs;
use core::sync::atomic::Ordering;
use drain::Drain;
use grow::Grower;
use guard::Parked;
use index::IndexWriter;
use intent::IntentWriter;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::time::delay::fsleep;
use kernel::time::Delta;
use presnap_abi::clock::monotonic_ns;
use presnap_abi::io::{Client, Transfer};
use presnap_abi::thread::{rest, set_nice, set_slice_ns, Body, MIN_NICE};
use presnap_engine::freeze::{DropReason, Event, Snapshot};
use presnap_engine::geometry::BLOCK_BYTES;
use presnap_engine::intent::IntentOrder;
use presnap_engine::pacer::Pacer;
use presnap_engine::region::{Copy2, SnapshotRecord, Superblock};
use root::RootWriter;
use seal::Manifest;
use settle::OriginFlush;
use stage::Stage;

/// How long the worker runs on while others wait for its CPU, and how long it rests then: so it takes a
/// quarter of a busy CPU at most, and a writer on it waits no longer than that.
const BREATH_NS: u64 = 25_000;
const REST_US: u32 = 75;
/// The rest while T0 is near: half of the CPU.
const SHORT_REST_US: u32 = 25;
/// The turns it asks of the scheduler.
const SLICE_NS: u64 = 100_000;

/// What is known of the changes since the last snapshot.
#[derive(Clone, Copy, Default)]
struct Known {
    full_needed: bool,
    after_crash: bool,
    superset_blocks: u64,
}

/// What was found in the region, and only the worker needs.
pub(crate) struct Found {
    pub(crate) index: KVVec<IndexState>,
    pub(crate) superblock: Superblock,
    /// The copy of the superblock that is not good.
    pub(crate) bad_copy: Option<Copy2>,
    /// Where the next version of the root goes.
    pub(crate) root_next: Copy2,
    pub(crate) intent: IntentOrder,
    /// The slot of each page of the dirty map, `NO_SLOT` if it has none.
    pub(crate) dirty_pages: KVVec<u32>,
}

/// The thread's state.
pub(crate) struct Worker {
    pub(crate) dev: Arc<Device>,
    /// The snapshot under way.
    snapshot: Snapshot,
    /// Its record so far, also the counters of the coming one before T0.
    record: SnapshotRecord,
    client: Arc<Client>,
    jobs: Jobs,
    index: IndexWriter,
    intent: IntentWriter,
    root: RootWriter,
    parked: Parked,
    stage: Stage,
    drain: Drain,
    manifest: Manifest,
    origin_flush: OriginFlush,
    removal: remove::Removal,
    grower: Grower,
    room: room::Room,
    /// How many background copies the foreground can bear.
    pacer: Pacer,
    /// While writers wait, this thread comes before others; its nice value else.
    calm_nice: Option<i32>,
    /// When others last had the CPU.
    breath_ns: u64,
    /// A pass did something, so that another may find more to do.
    progress: bool,
    /// First operation of the current generation.
    op_first: u64,
    /// Operations are counted from here for the rule that asks for a snapshot: the last attempt at one, or the
    /// opening (numbers may have been left out before).
    ops_from: u64,
    /// The last sealed snapshot, deleted since or not; 0 if none. The next delta starts there.
    base_id: u32,
    /// What was known of the changes at T0 of the snapshot under way.
    unsealed: Known,
    /// Statistics at the last T0, for those of one snapshot.
    mirrored_before: u64,
    stale_before: u64,
}

impl Worker {
    /// Prepares the worker of a device. Sleeps.
    #[inline(always)]
    pub(crate) fn new(dev: &Arc<Device>, found: Found) -> Result<Self> {
        let client = Client::new()?;
        let Found { index, superblock, bad_copy, root_next, intent, dirty_pages } = found;
        let mend = match bad_copy {
            Some(copy) => Some((copy, Transfer::new(&client, &dev.wake, BLOCK_BYTES as usize)?)),
            None => None,
        };
        let extents = dev.extents.count.into();
        let (base_id, op_first, next_snapshot) = {
            let root = dev.root.lock();
            (root.header.base_id, root.header.op_first, root.header.next_snapshot)
        };
        Ok(Self {
            dev: dev.clone(),
            snapshot: Snapshot::new(),
            record: SnapshotRecord::ZERO,
            jobs: Jobs::new(&client, &dev.wake)?,
            index: IndexWriter::new(&client, &dev.wake, index)?,
            intent: IntentWriter::new(&client, &dev.wake, intent, dirty_pages, extents)?,
            root: RootWriter::new(&client, &dev.wake, root_next, next_snapshot)?,
            parked: Parked::new(),
            stage: Stage::new()?,
            drain: Drain::new()?,
            manifest: Manifest::new(&client, &dev.wake)?,
            origin_flush: OriginFlush::new(&client, &dev.wake)?,
            client,
            removal: remove::Removal::new(),
            grower: Grower::new(superblock, mend),
            room: room::Room::default(),
            pacer: Pacer::new(),
            calm_nice: None,
            breath_ns: 0,
            progress: false,
            op_first,
            ops_from: dev.op.load(Ordering::Relaxed),
            base_id,
            unsealed: Known::default(),
            mirrored_before: 0,
            stale_before: 0,
        })
    }

    /// Lets others have the CPU when this pass has run for a while; not while writers are held, who
    /// would wait for all of them.
    fn breathe(&mut self) {
        if self.dev.gate.is_closed() {
            return;
        }
        // A writer that waits needs this thread more than the CPU.
        if self.parked.waiting() {
            return;
        }
        if monotonic_ns().saturating_sub(self.breath_ns) > BREATH_NS {
            rest(if self.stage.in_last_window() { SHORT_REST_US } else { REST_US });
            self.breath_ns = monotonic_ns();
        }
    }

    /// Each step of a guard's copy would otherwise wait until whoever has the CPU gives it away, and the
    /// writer with it.
    fn set_urgency(&mut self) {
        let urgent = self.parked.waiting();
        match self.calm_nice {
            None if urgent => self.calm_nice = Some(set_nice(MIN_NICE)),
            Some(nice) if !urgent => {
                set_nice(nice);
                self.calm_nice = None;
            }
            _ => {}
        }
    }

    fn pass(&mut self) {
        let now = monotonic_ns();
        let ios = self.dev.op.load(Ordering::Relaxed);
        self.pacer.earn(now, ios, self.parked.waiting());
        self.reap_copies();
        self.reap_index();
        self.reap_root();
        self.reap_intent();
        self.reap_manifest();
        self.take_held();
        self.handle_requests(now);
        self.advance_snapshot();
        self.flush_origin();
        self.watch_patience(now);
        self.retry_parked();
        self.run_drain(now);
        self.run_stage(now);
        self.run_manifest(now);
        self.run_removal();
        self.run_growth();
        self.run_intent(now);
        self.write_index();
        self.write_root();
        self.watch_room(now);
        self.publish();
        self.set_urgency();
    }

    /// Reports an event to the state machine and carries out what it says.
    fn report(&mut self, event: Event) {
        let now = monotonic_ns();
        for action in self.snapshot.step(event, now) {
            self.progress = true;
            self.act(action);
        }
    }

    /// The region failed: nothing that relies on it can go on.
    fn region_failed(&mut self) {
        if self.dev.health() != Health::Invalid {
            pr_err!("{}: I/O error on the region; snapshots are off\n", self.dev.region.number());
            self.dev.set_health(Health::Invalid);
            self.index.fail();
            // A last word, if the region takes it: that from here on nothing is known of the changes.
            self.dev.full_needed.store(true, Ordering::Relaxed);
            self.root.mark();
        }
        self.report(Event::Fail(DropReason::IoError));
        self.lose_images(DropReason::IoError);
    }

    /// Something may be started.
    fn healthy(&self) -> bool {
        self.dev.health() != Health::Invalid
    }

    /// Whether anything is in flight.
    fn busy(&self) -> bool {
        self.jobs.any_active()
            || self.index.in_flight()
            || self.root.in_flight()
            || self.intent.in_flight()
            || self.manifest.in_flight()
            || self.origin_flush.in_flight()
            || self.grower.in_flight()
    }

    /// Ends in order: no snapshot is left half made, the root says so.
    fn close(&mut self) {
        self.report(Event::Fail(DropReason::Closed));
        self.stage.pause();
        self.settle(|w| !w.jobs.any_active());
        // What was staged has no use any more; the index is made to say so, and what removals freed.
        self.forget_staged();
        self.settle(|w| !w.removal.pending() || !w.healthy());
        self.index.confirm(false);
        // With its dirty blocks written, no extent needs intent any more.
        self.intent.close();
        self.settle(|w| {
            let durable = w.index.clean() && w.intent.closed() && !w.root.dirty();
            !w.busy() && (durable || !w.healthy())
        });
        self.close_root();
    }

    /// Goes on with what is under way until `done`, for at most ten seconds of waiting for I/O.
    ///
    /// The target's bios have all ended by then; what is in flight is ours.
    fn settle(&mut self, done: impl Fn(&Self) -> bool) {
        let mut waited_ms = 0;
        while waited_ms < 10_000 {
            self.progress = false;
            self.pass_closing();
            if done(self) {
                return;
            }
            if !self.progress {
                // Not the wake: told to stop, this thread does not sleep on it any more.
                fsleep(Delta::from_millis(1));
                waited_ms += 1;
            }
        }
    }

    fn pass_closing(&mut self) {
        self.reap_copies();
        self.reap_index();
        self.reap_root();
        self.reap_intent();
        self.reap_manifest();
        self.run_removal();
        self.run_growth();
        self.run_intent(monotonic_ns());
        self.index.flush = true;
        self.write_index();
        self.write_root();
    }
}

impl Body for Worker {
    fn begin(&mut self) {
        set_slice_ns(SLICE_NS);
    }

    fn sleep_us(&self) -> u32 {
        self.until_due_us()
    }

    fn turn(&mut self) {
        self.breath_ns = monotonic_ns();
        // Bounded, so that a flood of events cannot keep it from seeing the stop.
        for _ in 0..64 {
            self.progress = false;
            self.pass();
            self.breathe();
            if !self.progress {
                break;
            }
        }
    }

    fn end(&mut self) {
        self.close();
    }
}
