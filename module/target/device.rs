// SPDX-License-Identifier: GPL-2.0-only

//! A device: one origin with its region, shared by the tables that map it, its worker, its files
//! in sysfs and the views of its snapshots.

use crate::growth::{Growth, Segments};
use crate::knobs::Knobs;
use crate::models::Models;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::new_mutex;
use kernel::new_spinlock;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex, SpinLock};
use presnap_abi::bio::{BioList, MirrorPool};
use presnap_abi::dm::{BlockDevice, MappedDevice};
use presnap_abi::memory::{array_of, array_with, zeroed_array};
use presnap_abi::thread::Wake;
use presnap_engine::bitmap::{leaf_words, summary_words, Bitmap};
use presnap_engine::freeze::{DropReason, FreezeBudget, Phase};
use presnap_engine::inflight::{Gate, Shard, TrackSlot, WriteTracker};
use presnap_engine::knob::KNOB_COUNT;
use presnap_engine::region::{Extents, Layout, Root, SnapshotRecord};
use presnap_engine::ring::{RecordRing, RingSlot};
use presnap_engine::slots::SlotTable;
use presnap_engine::table::Scope;

pub(crate) type Words = KVVec<AtomicU64>;
pub(crate) type BlockMap = Bitmap<Words, Words>;
pub(crate) type Slots = SlotTable<Segments, KVVec<u32>>;
pub(crate) type RootTable = Root<KVVec<SnapshotRecord>>;

/// CPUs that get gate counters of their own; more share.
const GATE_SHARDS: usize = 64;
/// Write generations: areas that are this many apart share one.
const TRACK_SLOTS: usize = 1 << 14;
/// Records kept for userspace and the predictor: 2.5 MiB.
const RING_SLOTS: usize = 1 << 16;

/// Makes a bitmap of `bits` bits, all clear. Sleeps.
pub(crate) fn block_map(bits: u64) -> Result<BlockMap> {
    let leaf = zeroed_array(leaf_words(bits))?;
    let summary = zeroed_array(summary_words(bits))?;
    Bitmap::new(leaf, summary, bits).ok_or(EINVAL)
}

/// What writes have to be guarded.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Guard {
    /// None.
    Off = 0,
    /// Those to blocks of the newest snapshot's delta.
    Delta = 1,
    /// All.
    Image = 2,
}

/// The bitmaps of two generations, switched by one counter.
///
/// At epoch `e`, writes mark `dirty[e % 2]`, and `dirty[(e + 1) % 2]` is the delta of the newest
/// snapshot. `staged[e % 3]` says what is staged and fresh for the coming snapshot,
/// `staged[(e + 2) % 3]` what the newest one preserves; the third is that of the snapshot before,
/// until it is cleared to be the next. So the switch at T0 is one increment.
pub(crate) struct Generations {
    epoch: AtomicU32,
    dirty: [BlockMap; 2],
    staged: [BlockMap; 3],
    /// Staged blocks whose copies follow the writes.
    pub(crate) mirrored: BlockMap,
    /// Mirrored blocks that were written: their checksum is not known.
    pub(crate) rewritten: BlockMap,
}

impl Generations {
    fn new(dirty: BlockMap) -> Result<Self> {
        let blocks = dirty.bits();
        Ok(Self {
            epoch: AtomicU32::new(0),
            dirty: [dirty, block_map(blocks)?],
            staged: [block_map(blocks)?, block_map(blocks)?, block_map(blocks)?],
            mirrored: block_map(blocks)?,
            rewritten: block_map(blocks)?,
        })
    }

    fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Blocks written in the current generation.
    pub(crate) fn dirty(&self) -> &BlockMap {
        let [a, b] = &self.dirty;
        if self.epoch() % 2 == 0 {
            a
        } else {
            b
        }
    }

    /// Blocks of the newest snapshot's delta.
    pub(crate) fn delta(&self) -> &BlockMap {
        let [a, b] = &self.dirty;
        if self.epoch() % 2 == 0 {
            b
        } else {
            a
        }
    }

    fn third(&self, ahead: u32) -> &BlockMap {
        let [a, b, c] = &self.staged;
        match (self.epoch() % 3).wrapping_add(ahead) % 3 {
            0 => a,
            1 => b,
            _ => c,
        }
    }

    /// Blocks staged, and fresh, for the coming snapshot.
    pub(crate) fn staged(&self) -> &BlockMap {
        self.third(0)
    }

    /// Blocks that the newest snapshot preserves.
    pub(crate) fn preserved(&self) -> &BlockMap {
        self.third(2)
    }

    /// Blocks that the snapshot before preserves; clear when `preserved` has been sealed.
    pub(crate) fn former(&self) -> &BlockMap {
        self.third(1)
    }

    /// The switch of T0. The gate must be closed and nothing in flight.
    pub(crate) fn switch(&self) {
        // The counter wraps at a multiple of 6, so that both remainders go on.
        let next = match self.epoch().wrapping_add(1) {
            6_000_000 => 0,
            next => next,
        };
        self.epoch.store(next, Ordering::Release);
    }
}

/// Sums since the device was opened.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) predictions: AtomicU64,
    pub(crate) predictions_right: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) wasted: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) precopied_blocks: AtomicU64,
    pub(crate) guarded_blocks: AtomicU64,
    pub(crate) guard_stalls: AtomicU64,
    pub(crate) mirrored_writes: AtomicU64,
    pub(crate) drained_blocks: AtomicU64,
    pub(crate) final_copy_blocks: AtomicU64,
    pub(crate) staged_valid_blocks: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    pub(crate) snapshots_dropped: AtomicU64,
    pub(crate) io_errors: AtomicU64,
    pub(crate) region_bytes: AtomicU64,
    pub(crate) intent_waits: AtomicU64,
    pub(crate) intent_demanded: AtomicU64,
    pub(crate) intent_premarked: AtomicU64,
    pub(crate) intent_premarked_used: AtomicU64,
    pub(crate) intent_writes: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) io_retries: AtomicU64,
}

impl Totals {
    /// How many there are.
    pub(crate) const COUNT: usize = 24;

    /// All of them, in the order of their files in sysfs.
    pub(crate) fn all(&self) -> [&AtomicU64; Self::COUNT] {
        [
            &self.predictions,
            &self.hits,
            &self.misses,
            &self.wasted,
            &self.stale,
            &self.precopied_blocks,
            &self.guarded_blocks,
            &self.guard_stalls,
            &self.mirrored_writes,
            &self.drained_blocks,
            &self.final_copy_blocks,
            &self.staged_valid_blocks,
            &self.snapshots,
            &self.snapshots_dropped,
            &self.io_errors,
            &self.region_bytes,
            &self.predictions_right,
            &self.intent_waits,
            &self.intent_demanded,
            &self.intent_premarked,
            &self.intent_premarked_used,
            &self.intent_writes,
            &self.timeouts,
            &self.io_retries,
        ]
    }
}

/// Adds to a statistics counter.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A snapshot that somebody asked for.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) id: u32,
    pub(crate) scope: Scope,
    pub(crate) t0_ns: u64,
    pub(crate) budget: FreezeBudget,
}

/// Who keeps a snapshot from being deleted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Somebody who sent the message `hold`.
    Message,
    /// A view.
    View,
}

/// A snapshot that is held against deletion, and how often by whom.
#[derive(Clone, Copy)]
struct Hold {
    id: u32,
    messages: u32,
    views: u32,
}

impl Hold {
    const NONE: Self = Self { id: 0, messages: 0, views: 0 };

    fn count(&mut self, holder: Holder) -> &mut u32 {
        match holder {
            Holder::Message => &mut self.messages,
            Holder::View => &mut self.views,
        }
    }

    fn held(&self) -> bool {
        self.messages > 0 || self.views > 0
    }
}

/// How many dropped snapshots are remembered, so that `state` can say what became of them.
const DROPPED_KEPT: usize = 16;
/// How many snapshots may be held at once.
const HOLDS: usize = 32;

/// What messages ask of the worker, and what the worker lets them see.
pub(crate) struct Control {
    /// Asked for, and not yet seen by the worker.
    pub(crate) request: Option<Request>,
    /// Under way, with its phase and its record so far.
    pub(crate) active: Option<(Request, Phase, SnapshotRecord)>,
    /// To be deleted.
    pub(crate) delete: Option<u32>,
    /// The unfinished snapshot that shall be dropped.
    pub(crate) abort: Option<u32>,
    /// The region shall grow, with this.
    pub(crate) growth: Option<Growth>,
    /// It does.
    pub(crate) growing: bool,
    /// The last ones dropped, newest last.
    dropped: [(u32, Option<DropReason>); DROPPED_KEPT],
    holds: [Hold; HOLDS],
}

impl Control {
    fn new() -> Self {
        Self {
            request: None,
            active: None,
            delete: None,
            abort: None,
            growth: None,
            growing: false,
            dropped: [(0, None); DROPPED_KEPT],
            holds: [Hold::NONE; HOLDS],
        }
    }

    /// Goes on from the control of a device that is closed. What it was still asked for comes to nothing, but for a deletion.
    fn go_on_from(&mut self, before: &Before) {
        self.dropped = before.dropped;
        self.holds = before.holds;
        self.delete = before.delete;
        if let Some(request) = before.request {
            self.note_dropped(request.id, DropReason::Closed);
        }
    }

    /// The snapshot that is asked for or under way.
    pub(crate) fn unfinished(&self) -> Option<u32> {
        self.request.or(self.active.map(|active| active.0)).map(|request| request.id)
    }

    /// Begins with a snapshot. From here on until it is finished no other one is given a number.
    pub(crate) fn begin(&mut self, request: Request) {
        self.active = Some((request, Phase::Idle, SnapshotRecord::ZERO));
    }

    /// Remembers a dropped snapshot.
    pub(crate) fn note_dropped(&mut self, id: u32, reason: DropReason) {
        self.dropped.rotate_left(1);
        if let Some(last) = self.dropped.last_mut() {
            *last = (id, Some(reason));
        }
    }

    /// Why a snapshot was dropped, if it was.
    pub(crate) fn dropped(&self, id: u32) -> Option<DropReason> {
        self.dropped.iter().rev().find(|d| d.0 == id).and_then(|d| d.1)
    }

    /// Whether a snapshot is held.
    pub(crate) fn held(&self, id: u32) -> bool {
        self.holds.iter().any(|h| h.id == id && h.held())
    }

    /// Holds a snapshot that is not being deleted; `false` if it is, or if too many are held.
    ///
    /// The caller looks for the snapshot after that, and releases it again if there is none.
    pub(crate) fn hold(&mut self, id: u32, holder: Holder) -> bool {
        if self.delete == Some(id) {
            return false;
        }
        let place = self
            .holds
            .iter()
            .position(|h| h.id == id && h.held())
            .or_else(|| self.holds.iter().position(|h| !h.held()));
        match place.and_then(|i| self.holds.get_mut(i)) {
            Some(hold) => {
                hold.id = id;
                let count = hold.count(holder);
                *count = count.saturating_add(1);
                true
            }
            None => false,
        }
    }

    /// Releases a snapshot; `false` if that holder did not hold it.
    pub(crate) fn release(&mut self, id: u32, holder: Holder) -> bool {
        let mine = |h: &&mut Hold| {
            let count = if holder == Holder::View { h.views } else { h.messages };
            h.id == id && count > 0
        };
        match self.holds.iter_mut().find(mine) {
            Some(hold) => {
                let count = hold.count(holder);
                *count = count.saturating_sub(1);
                true
            }
            None => false,
        }
    }
}

/// Why no write of the region can be relied on, if so.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Health {
    /// All is well.
    Good = 0,
    /// A snapshot was dropped for want of room.
    Overflow = 1,
    /// The region failed: no snapshots until the device is opened again.
    Invalid = 2,
}

/// The device. See the fields for who may touch what.
#[pin_data]
pub(crate) struct Device {
    pub(crate) region_uuid: [u8; 16],
    pub(crate) origin: BlockDevice,
    pub(crate) region: BlockDevice,
    /// Whether region writes need a barrier to be durable.
    pub(crate) region_cached: bool,
    /// Whether what ended on the origin needs a flush to be durable.
    pub(crate) origin_cached: bool,
    /// That the region was opened with, and its size now.
    first_layout: Layout,
    pub(crate) region_blocks: AtomicU64,
    pub(crate) origin_sectors: u64,

    /// Passed by every write that modifies the origin, closed by a freeze.
    pub(crate) gate: Gate<KVVec<Shard>>,
    /// Write generations of areas.
    pub(crate) tracker: WriteTracker<KVVec<TrackSlot>>,
    /// Reads of the origin by views, like writes in `tracker`.
    pub(crate) view_reads: WriteTracker<KVVec<TrackSlot>>,
    /// Number of views.
    pub(crate) views: AtomicU32,
    /// A write waits for a view's read.
    view_waited_for: AtomicBool,
    /// How often images were lost: a view made before the last time is not valid any more.
    images_lost: AtomicU64,
    /// Last operation number given.
    pub(crate) op: AtomicU64,
    pub(crate) generations: Generations,
    pub(crate) extents: Extents,
    /// Extents that may be written: the region says so, and will after a crash.
    pub(crate) intents: BlockMap,
    /// Extents that were written lately.
    pub(crate) touched: BlockMap,
    guard: AtomicU32,
    /// Number of the coming snapshot: changes with the generation.
    coming: AtomicU32,
    /// The newest snapshot, sealed or not: what is guarded is preserved for it. 0 if there is none.
    newest: AtomicU32,
    /// A write that cannot be guarded fails, instead of the snapshot.
    pub(crate) fail_writes: AtomicBool,
    /// Whether anything may be staged: writers need not look otherwise.
    pub(crate) staging: AtomicBool,
    /// Some mirrored writes make their copies stale instead, so that the hottest go.
    pub(crate) mirror_limited: AtomicBool,
    pub(crate) ring: RecordRing<KVVec<RingSlot>>,
    pub(crate) knobs: Knobs,
    pub(crate) totals: Totals,
    health: AtomicU32,
    /// Less of the region is free than shall be.
    pub(crate) low_water: AtomicBool,
    /// An event is to be raised when that happens.
    pub(crate) low_water_armed: AtomicBool,
    /// The delta of the current generation may lack writes.
    pub(crate) full_needed: AtomicBool,
    /// There was a crash in the current generation.
    pub(crate) after_crash: AtomicBool,
    /// Blocks that pass for changed in the current generation and may not be: after a crash, all of an extent does.
    pub(crate) superset_blocks: AtomicU64,
    /// Blocks passed for changed when the device was opened, and no snapshot was sealed since: which of them were not written
    /// nobody knows.
    pub(crate) opened_dirty: AtomicBool,
    /// Areas that the predictor remembers.
    pub(crate) areas_active: AtomicU64,
    pub(crate) wake: Arc<Wake>,

    /// Bios held by the gate or the guard, on their way to the worker.
    #[pin]
    pub(crate) held: SpinLock<BioList>,
    /// What each slot holds: changed by the worker, read by views.
    #[pin]
    pub(crate) slots: SpinLock<Slots>,
    /// The durable table of snapshots: changed by the worker, read by messages.
    #[pin]
    pub(crate) root: Mutex<RootTable>,
    #[pin]
    pub(crate) control: Mutex<Control>,
    #[pin]
    pub(crate) models: Mutex<Models>,
    /// The mapped device of the live table, to raise events on.
    #[pin]
    pub(crate) events: Mutex<Option<Arc<MappedDevice>>>,
    /// The mapped devices of the views.
    #[pin]
    pub(crate) view_events: Mutex<KVec<Arc<MappedDevice>>>,
    #[pin]
    pub(crate) mirrors: MirrorPool,
}

/// What outlives a device that is closed and opened again while its table is reloaded.
pub(crate) struct Before {
    knobs: [u64; KNOB_COUNT],
    models: Models,
    totals: [u64; Totals::COUNT],
    dropped: [(u32, Option<DropReason>); DROPPED_KEPT],
    holds: [Hold; HOLDS],
    delete: Option<u32>,
    request: Option<Request>,
}

impl Before {
    /// Room for it. Sleeps.
    #[inline(never)]
    pub(crate) fn empty() -> Result<KBox<Self>> {
        let before = Self {
            knobs: [0; KNOB_COUNT],
            models: Models::new()?,
            totals: [0; Totals::COUNT],
            dropped: [(0, None); DROPPED_KEPT],
            holds: [Hold::NONE; HOLDS],
            delete: None,
            request: None,
        };
        Ok(KBox::new(before, GFP_KERNEL)?)
    }

    /// Takes it out of a device whose worker has ended.
    pub(crate) fn take(&mut self, device: &Device) {
        core::mem::swap(&mut *device.models.lock(), &mut self.models);
        for (i, value) in self.knobs.iter_mut().enumerate() {
            *value = device.knobs.at(i);
        }
        for (value, total) in self.totals.iter_mut().zip(device.totals.all()) {
            *value = total.load(Ordering::Relaxed);
        }
        let control = device.control.lock();
        self.dropped = control.dropped;
        self.holds = control.holds;
        for hold in &mut self.holds {
            // There is none; one that was about to be is not any more.
            hold.views = 0;
        }
        self.delete = control.delete;
        self.request = control.request;
    }

    /// Gives it to a device that nobody uses yet.
    pub(crate) fn hand_over(&mut self, device: &Device) {
        for (i, value) in self.knobs.into_iter().enumerate() {
            device.knobs.set_at(i, value);
        }
        for (total, before) in device.totals.all().into_iter().zip(self.totals) {
            total.store(before, Ordering::Relaxed);
        }
        device.control.lock().go_on_from(self);
        // A number that was given to somebody is not given again.
        let next = self.request.map_or(0, |request| request.id.saturating_add(1));
        if device.coming() < next {
            device.set_coming(next);
            device.root.lock().header.next_snapshot = next;
        }
        core::mem::swap(&mut *device.models.lock(), &mut self.models);
    }
}

/// What [`Device::new`] is made of.
pub(crate) struct Parts {
    pub(crate) region_uuid: [u8; 16],
    pub(crate) origin: BlockDevice,
    pub(crate) region: BlockDevice,
    pub(crate) layout: Layout,
    pub(crate) origin_sectors: u64,
    pub(crate) slots: Slots,
    pub(crate) root: RootTable,
    pub(crate) full_needed: bool,
    pub(crate) after_crash: bool,
    pub(crate) superset_blocks: u64,
    pub(crate) extents: Extents,
    pub(crate) intents: BlockMap,
    /// Blocks changed since the last snapshot.
    pub(crate) dirty: BlockMap,
}

impl Device {
    /// Makes a device. Sleeps.
    #[inline(never)]
    pub(crate) fn new(parts: Parts, wake: Arc<Wake>) -> Result<Arc<Self>> {
        let gate = Gate::new(array_with(GATE_SHARDS, Shard::new)?).ok_or(EINVAL)?;
        let tracker = WriteTracker::new(array_with(TRACK_SLOTS, TrackSlot::new)?).ok_or(EINVAL)?;
        let view_reads =
            WriteTracker::new(array_with(TRACK_SLOTS, TrackSlot::new)?).ok_or(EINVAL)?;
        let ring = RecordRing::new(array_with(RING_SLOTS, RingSlot::new)?).ok_or(EINVAL)?;
        let models = Models::new()?;
        let region_cached = parts.region.has_write_cache();
        let origin_cached = parts.origin.has_write_cache();
        let next_id = parts.root.header.next_snapshot;
        let newest = parts.root.newest().map_or(0, |r| r.id);
        let last_op = parts.root.header.next_op.saturating_sub(1);
        let Parts { region_uuid, origin, region, layout, origin_sectors, slots, root, .. } = parts;
        let Parts { full_needed, after_crash, superset_blocks, extents, intents, dirty, .. } =
            parts;
        let opened_dirty = dirty.count() > 0;
        let generations = Generations::new(dirty)?;
        let touched = block_map(extents.count.into())?;
        let device = Arc::pin_init(
            try_pin_init!(Self {
                region_uuid,
                origin,
                region,
                region_cached,
                origin_cached,
                first_layout: layout,
                region_blocks: AtomicU64::new(layout.region_blocks),
                origin_sectors,
                gate,
                tracker,
                view_reads,
                views: AtomicU32::new(0),
                view_waited_for: AtomicBool::new(false),
                images_lost: AtomicU64::new(0),
                op: AtomicU64::new(last_op),
                generations,
                extents,
                intents,
                touched,
                guard: AtomicU32::new(Guard::Off as u32),
                coming: AtomicU32::new(next_id),
                newest: AtomicU32::new(newest),
                fail_writes: AtomicBool::new(false),
                staging: AtomicBool::new(false),
                mirror_limited: AtomicBool::new(false),
                ring,
                knobs: Knobs::new(),
                totals: Totals::default(),
                health: AtomicU32::new(Health::Good as u32),
                low_water: AtomicBool::new(false),
                low_water_armed: AtomicBool::new(true),
                full_needed: AtomicBool::new(full_needed),
                after_crash: AtomicBool::new(after_crash),
                superset_blocks: AtomicU64::new(superset_blocks),
                opened_dirty: AtomicBool::new(opened_dirty),
                areas_active: AtomicU64::new(0),
                wake,
                held <- new_spinlock!(BioList::new(), "presnap::held"),
                slots <- new_spinlock!(slots, "presnap::slots"),
                root <- new_mutex!(root, "presnap::root"),
                control <- new_mutex!(Control::new(), "presnap::control"),
                models <- new_mutex!(models, "presnap::models"),
                events <- new_mutex!(None, "presnap::events"),
                view_events <- new_mutex!(KVec::new(), "presnap::view_events"),
                mirrors <- MirrorPool::new(),
            }? Error),
            GFP_KERNEL,
        )?;
        Ok(device)
    }

    /// The layout of the region, which may grow.
    pub(crate) fn layout(&self) -> Layout {
        Layout::for_region(self.region_blocks.load(Ordering::Acquire)).unwrap_or(self.first_layout)
    }

    /// Whether durable intent covers these blocks; notes that they are written lately.
    pub(crate) fn intended(&self, first: u64, count: u64) -> bool {
        let (extent, n) = self.extents.of(first, count);
        if !self.intents.all_set(extent, n) {
            return false;
        }
        if !self.touched.all_set(extent, n) {
            self.touched.set_range(extent, n);
        }
        true
    }

    /// What has to be guarded now.
    pub(crate) fn guard(&self) -> Guard {
        match self.guard.load(Ordering::Acquire) {
            1 => Guard::Delta,
            2 => Guard::Image,
            _ => Guard::Off,
        }
    }

    /// Changes what has to be guarded; stricter only with the gate closed and nothing in flight.
    pub(crate) fn set_guard(&self, guard: Guard) {
        self.guard.store(guard as u32, Ordering::Release);
    }

    /// The number of the coming snapshot: that of staged blocks.
    pub(crate) fn coming(&self) -> u32 {
        self.coming.load(Ordering::Acquire)
    }

    /// Changes it: only with the gate closed, or with nothing staged.
    pub(crate) fn set_coming(&self, id: u32) {
        self.coming.store(id, Ordering::Release);
    }

    /// Whether a view reads one of these areas from the origin; if so, the worker is woken when
    /// such a read has ended.
    pub(crate) fn must_wait_for_view(&self, area: u64, areas: u64) -> bool {
        if self.views.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let reads =
            || (area..area.saturating_add(areas)).any(|a| self.view_reads.stamp(a).is_none());
        if !reads() {
            return false;
        }
        self.view_waited_for.store(true, Ordering::SeqCst);
        // It may have ended before it could see that somebody waits.
        reads()
    }

    /// A view's read of the origin has ended. Any context.
    pub(crate) fn view_read_ended(&self) {
        if self.view_waited_for.load(Ordering::SeqCst) {
            self.wake.wake();
        }
    }

    /// Whether a write waits for views' reads; it has to be tried again then.
    pub(crate) fn take_view_waited_for(&self) -> bool {
        self.view_waited_for.swap(false, Ordering::SeqCst)
    }

    /// The newest snapshot, sealed or not; 0 if there is none.
    pub(crate) fn newest(&self) -> u32 {
        self.newest.load(Ordering::Acquire)
    }

    /// Changes it, together with what `Generations::preserved` stands for.
    pub(crate) fn set_newest(&self, id: u32) {
        self.newest.store(id, Ordering::Release);
    }

    /// The record of a snapshot that is sealed; that of one being sealed is in the root before it is
    /// durable.
    pub(crate) fn sealed(&self, id: u32) -> Option<SnapshotRecord> {
        let control = self.control.lock();
        let unfinished = control.unfinished() == Some(id);
        if unfinished {
            None
        } else {
            self.root.lock().find(id).copied()
        }
    }

    /// Something happened that a human, or whoever acts for one, should look at.
    pub(crate) fn raise_event(&self) {
        if let Some(md) = self.events.lock().as_ref() {
            md.raise_event();
        }
    }

    /// How often images were lost.
    pub(crate) fn images_lost(&self) -> u64 {
        self.images_lost.load(Ordering::Acquire)
    }

    /// All images there are now are lost: their views must not be read any more. Sleeps.
    pub(crate) fn lose_images(&self) {
        self.images_lost.fetch_add(1, Ordering::AcqRel);
        for md in self.view_events.lock().iter() {
            md.raise_event();
        }
    }

    /// How the region is.
    pub(crate) fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            1 => Health::Overflow,
            2 => Health::Invalid,
            _ => Health::Good,
        }
    }

    /// Changes how the region is; `Invalid` stays.
    pub(crate) fn set_health(&self, health: Health) {
        if self.health() != Health::Invalid {
            self.health.store(health as u32, Ordering::Relaxed);
        }
    }
}

/// Allocates the empty slot table of a layout. Sleeps.
pub(crate) fn empty_slots(layout: &Layout) -> Result<Slots> {
    let entries = Segments::new(layout.slots)?;
    let buckets = array_of((layout.slots as usize).next_power_of_two(), 0u32)?;
    SlotTable::new(entries, buckets, layout.slots).ok_or(EINVAL)
}
