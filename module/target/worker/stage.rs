// SPDX-License-Identifier: GPL-2.0-only

//! Before T0: observing, predicting, and copying what is worth it.
//!
//! Every tick the predictor takes in what was recorded since the last one, dirty areas are scored,
//! and the best go to the copier, as far as budget and bandwidth allow.

use super::copy::{cost_of, NotStarted, Purpose};
use super::Worker;
use crate::device::{add, Device, Request};
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use presnap_abi::clock::monotonic_ns;
use presnap_abi::memory::array_of;
use presnap_engine::activity::AreaState;
use presnap_engine::chunker;
use presnap_engine::fixed::Prob;
use presnap_engine::freeze::Phase;
use presnap_engine::geometry::AREA_BLOCKS_SHIFT;
use presnap_engine::knob::Knob;
use presnap_engine::policy::{self, AreaView, Context, Decision, Mirror};
use presnap_engine::predictor::{Predictor, PredictorKind};
use presnap_engine::rank::sort_descending;
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::region::{Scope, SlotKind};
use presnap_engine::stream::{AreaAhead, StreamHead};
use presnap_engine::throttle::{Throttle, ThrottleConfig};
use presnap_engine::trigger::{Trigger, TriggerConfig};

/// Areas that the predictor remembers (4 MiB of memory), and streams.
const AREAS: usize = 1 << 16;
const STREAMS: usize = 1 << 12;
/// Areas handed to the copier in a tick.
const CANDIDATES: usize = 2048;
/// Copies ahead of T0 at a time, so that a writer never queues behind many.
const COPIES_AT_ONCE: usize = 8;
/// The window after T0 in which a write counts as "soon".
const AFTER_NS: u64 = 5_000_000_000;
/// How far ahead of a stream intent is marked.
const PREMARK_NS: u64 = 1_000_000_000;
/// Shortest tick.
const NEAR_TICK_NS: u64 = 20_000_000;
/// Records taken in one pass, and areas scored in one: small, because a kernel thread that does not
/// sleep may keep others from the CPU until the next tick of the scheduler.
const RECORDS: usize = 128;
/// Of them, at least so many are accounted one by one, and one more for each so many nanoseconds
/// since the last pass: 20,000 a second.
const OBSERVED_PER_PASS: u64 = 8;
const NS_PER_OBSERVATION: u64 = 50_000;
const SCORED_PER_PASS: usize = 8;
const SPRINTED_PER_PASS: usize = 64;
/// Scoring takes at most one part in so many of a CPU's time, and in the lead before T0.
const SCAN_SHARE: u64 = 40;
const SCAN_SHARE_NEAR: u64 = 20;
/// Predictions waiting to be judged.
const SAMPLES: usize = 512;

#[derive(Clone, Copy, Default)]
struct Candidate {
    value: u32,
    area: u64,
    decision: Decision,
    score: Prob,
}

/// A prediction that will be judged when its time is over.
#[derive(Clone, Copy, Default)]
struct Sample {
    area: u64,
    made_ns: u64,
    until_ns: u64,
    said: bool,
}

/// How far the scan of a tick has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scan {
    /// Dirty areas are being scored.
    Dirty,
    /// Clean areas are being scored.
    Clean,
    /// The candidates are in order, and may be copied.
    Done,
}

/// See the module.
pub(crate) struct Stage {
    predictor: Predictor<KVVec<AreaState>, KVVec<StreamHead>>,
    records: KVVec<IoRecord>,
    ring_cursor: u64,
    observed_ns: u64,
    throttle: Throttle,
    trigger: Trigger,
    config: TriggerConfig,
    candidates: KVVec<Candidate>,
    next: usize,
    len: usize,
    /// Dirty area from which the next tick goes on.
    cursor: u64,
    /// There was no room for more candidates.
    truncated: bool,
    in_last_window: bool,
    sprint: bool,
    next_tick_ns: u64,
    scan: Scan,
    /// Time spent on this scan.
    scan_ns: u64,
    /// Where the walk over remembered areas goes on.
    clean_cursor: usize,
    clean_started: bool,
    /// Areas scored so far.
    scored: u64,
    /// There is more to observe.
    behind: bool,
    paused: bool,
    /// Slots may be in use for the coming snapshot.
    holds_slots: bool,
    samples: KVVec<Sample>,
    sample_at: usize,
    ahead: KVVec<AreaAhead>,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        let areas = array_of(AREAS, AreaState::default())?;
        let streams = array_of(STREAMS, StreamHead::EMPTY)?;
        let blank = IoRecord { time_ns: 0, op: 0, sector: 0, sectors: 0, kind: IoKind::Flush };
        let config = TriggerConfig::default();
        let none = AreaAhead { area: 0, eta_ns: 0, stream_blocks: 0, distance_blocks: 0 };
        Ok(Self {
            predictor: Predictor::new(areas, streams).ok_or(EINVAL)?,
            records: array_of(RECORDS, blank)?,
            ring_cursor: 0,
            observed_ns: 0,
            throttle: Throttle::new(ThrottleConfig::default()),
            trigger: Trigger::new(config, monotonic_ns()),
            config,
            candidates: array_of(CANDIDATES, Candidate::default())?,
            next: 0,
            len: 0,
            cursor: 0,
            truncated: false,
            in_last_window: false,
            sprint: false,
            next_tick_ns: 0,
            scan: Scan::Done,
            scan_ns: 0,
            clean_cursor: 0,
            clean_started: false,
            scored: 0,
            behind: false,
            paused: false,
            holds_slots: false,
            samples: array_of(SAMPLES, Sample::default())?,
            sample_at: 0,
            ahead: array_of(64, none)?,
        })
    }

    /// Starts no more copies.
    pub(super) fn pause(&mut self) {
        self.paused = true;
        self.pause_prediction();
    }

    /// Whether all that is dirty is being copied, because T0 is near.
    pub(super) fn in_last_window(&self) -> bool {
        self.in_last_window
    }

    fn pause_prediction(&mut self) {
        self.in_last_window = false;
        self.sprint = false;
        self.len = 0;
        self.next = 0;
        self.scan = Scan::Done;
    }

    fn begin_scan(&mut self) {
        self.len = 0;
        self.next = 0;
        self.scan = Scan::Dirty;
        self.scan_ns = 0;
        self.clean_cursor = 0;
        self.clean_started = false;
    }

    /// The next areas that may be worth a copy though they are clean: first those that streams
    /// are about to reach, then those that are remembered.
    fn next_clean(&mut self, now: u64, areas: &mut [u64; SCORED_PER_PASS]) -> usize {
        if !self.clean_started {
            self.clean_started = true;
            let n = self.predictor.ahead(now, AFTER_NS, &mut self.ahead).min(areas.len());
            for (place, ahead) in areas.iter_mut().zip(self.ahead.iter().take(n)) {
                *place = ahead.area;
            }
            return n;
        }
        let n = self.predictor.iter_active(&mut self.clean_cursor, areas);
        // The cursor is 0 again after the last.
        if self.clean_cursor == 0 {
            self.scan = Scan::Done;
        }
        n
    }

    /// T0: what was staged is the new snapshot's now.
    pub(super) fn begin_generation(&mut self) {
        self.holds_slots = false;
    }

    /// Goes on, for the coming snapshot.
    pub(super) fn resume(&mut self) {
        self.paused = false;
        self.cursor = 0;
    }

    /// Whether there is something to do before the next tick.
    pub(super) fn unfinished(&self) -> bool {
        self.behind || self.scan != Scan::Done || self.next < self.len
    }

    pub(super) fn note_snapshot(&mut self, t0_ns: u64) {
        self.trigger.note_snapshot(t0_ns);
    }

    /// P(a write soon after now): the order of the drain.
    pub(super) fn score_after(&self, area: u64, now: u64) -> Prob {
        self.predictor.score_heuristic(PredictorKind::Ewma, area, now, AFTER_NS)
    }

    /// Takes in some of what was recorded; whether there is more.
    ///
    /// To account a record costs a good part of what the bio itself did. So of a flood only the
    /// first few of a batch are, and stand for the rest.
    fn observe(&mut self, dev: &Device, now: u64) -> bool {
        let outcome = dev.ring.read(&mut self.ring_cursor, &mut self.records);
        let dt = now.saturating_sub(self.observed_ns);
        self.observed_ns = now;
        let affordable = (dt / NS_PER_OBSERVATION).max(OBSERVED_PER_PASS);
        let observed = outcome.count.min(usize::try_from(affordable).unwrap_or(usize::MAX));
        let rest = outcome.count.saturating_sub(observed);
        for (i, record) in self.records.iter().take(observed).enumerate() {
            // Shares the rest evenly: the weights add up to the count.
            let share = rest.saturating_add(i).checked_div(observed).unwrap_or(0);
            self.predictor.observe_weighted(record, share.saturating_add(1) as u32);
        }
        outcome.count == RECORDS
    }

    fn push(&mut self, candidate: Candidate) {
        if let Some(place) = self.candidates.get_mut(self.len) {
            *place = candidate;
            self.len = self.len.saturating_add(1);
        }
    }

    /// Keeps a prediction to judge it later; judges the one it replaces.
    fn sample(&mut self, dev: &Device, now: u64, area: u64, p: Prob, horizon_ns: u64) {
        let Some(old) = self.samples.get_mut(self.sample_at) else { return };
        if old.until_ns > now {
            return; // Its time is not over: this one is not sampled.
        }
        if old.until_ns != 0 {
            // The tick is in milliseconds; a write right after the prediction counts.
            let made_ms = old.made_ns / 1_000_000;
            let until_ms = old.until_ns / 1_000_000;
            let last = self.predictor.activity().get(old.area).map_or(0, |a| a.last_write_ms);
            // A write after the horizon hides whether there was one in it: such a sample says
            // nothing.
            if last <= until_ms {
                add(&dev.totals.predictions, 1);
                if (last > made_ms) == old.said {
                    add(&dev.totals.predictions_right, 1);
                }
            }
        }
        *old = Sample {
            area,
            made_ns: now,
            until_ns: now.saturating_add(horizon_ns),
            said: p > Prob::HALF,
        };
        self.sample_at = self.sample_at.wrapping_add(1) % SAMPLES;
    }
}

/// Those of the blocks `mask` of an area that were staged and went stale: they still have a slot.
fn stale_mask(dev: &Device, area: u64, mask: u16) -> u16 {
    let coming = dev.coming();
    let slots = dev.slots.lock();
    (0..16u16).fold(0, |stale, i| {
        let bit = 1u16 << (i & 15);
        let block = (area << AREA_BLOCKS_SHIFT).saturating_add(i.into());
        let staged = mask & bit != 0 && slots.lookup(coming, block).is_some();
        if staged {
            stale | bit
        } else {
            stale
        }
    })
}

/// The blocks of a chunk, a bit each.
fn run_mask(run: (u8, u8)) -> u16 {
    let ones = u16::MAX.checked_shr(u32::from(16u8.saturating_sub(run.1))).unwrap_or(0);
    ones.checked_shl(run.0.into()).unwrap_or(0)
}

impl Worker {
    /// The decision's context: what is known of T0 and of the load.
    fn context(&self, now: u64) -> Context {
        let knobs = &self.dev.knobs;
        let t0 = match self.snapshot.phase() {
            Phase::Pending { t0_ns } => Some(t0_ns),
            _ => self.stage.trigger.next_t0_ns(now),
        };
        let g = &self.dev.generations;
        Context {
            time_to_t0_ns: t0.map(|t| t.saturating_sub(now)),
            bandwidth_blocks_per_s: self.bandwidth_blocks_per_s(),
            remaining_dirty_blocks: g.dirty().count().saturating_sub(g.staged().count()),
            threshold: knobs.probability(Knob::ThresholdPermille),
            guard_threshold: knobs.probability(Knob::GuardThresholdPermille),
            lead_ns: knobs.ms_as_ns(Knob::LeadMs),
            scope_image: self.coming_scope() == Scope::Image,
            mirror: knobs.mirror(),
            default_horizon_ns: knobs.ms_as_ns(Knob::HorizonMs),
        }
    }

    /// What the copier may do: as the knob says, and as the foreground bears; 0 if there is no limit.
    fn bandwidth_blocks_per_s(&self) -> u64 {
        let allowed = self.dev.knobs.get(Knob::CopyBandwidthKib) / 4;
        match (allowed, self.pacer.copies_per_s()) {
            (0, borne) => borne,
            (allowed, 0) => allowed,
            (allowed, borne) => allowed.min(borne),
        }
    }

    fn coming_scope(&self) -> Scope {
        match self.snapshot.phase() {
            Phase::Pending { .. } => self.record.scope,
            _ => self.dev.knobs.scope(),
        }
    }

    /// A snapshot that a rule asks for now.
    pub(super) fn triggered(&mut self, now: u64) -> Option<Request> {
        let knobs = &self.dev.knobs;
        let config = TriggerConfig {
            schedule_ms: knobs.get(Knob::ScheduleMs),
            ops: knobs.get(Knob::TriggerOps),
            dirty_blocks: knobs.get(Knob::TriggerDirtyBlocks),
            rate_blocks_per_s: 0,
            idle_ms: 0,
            min_distance_ms: knobs.get(Knob::MinDistanceMs),
        };
        if config != self.stage.config {
            self.stage.config = config;
            self.stage.trigger.configure(config, now);
        }
        let op = self.dev.op.load(Ordering::Relaxed);
        let ops = op.saturating_sub(self.ops_from);
        let dirty = self.dev.generations.dirty().count();
        self.stage.trigger.fire(now, ops, dirty)?;
        Some(Request {
            id: self.coming_id(),
            scope: knobs.scope(),
            t0_ns: now,
            budget: knobs.freeze_budget(),
        })
    }

    /// Runs the predictor when its time has come, and feeds the copier.
    pub(super) fn run_stage(&mut self, now: u64) {
        let kind = self.dev.knobs.predictor();
        if kind == PredictorKind::Off {
            self.stage.pause_prediction();
            self.stage.behind = false;
            return;
        }
        let dev = self.dev.clone();
        self.stage.behind = self.stage.observe(&dev, now);
        let phase = self.snapshot.phase();
        let before_t0 = matches!(phase, Phase::Idle | Phase::Pending { .. });
        if !before_t0 || self.stage.paused || !self.healthy() {
            self.stage.pause_prediction();
            return;
        }
        let ctx = self.context(now);
        let last = ctx.time_to_t0_ns.is_some_and(|left| left <= ctx.last_window_ns());
        let sprint = ctx.in_sprint();
        // Until the sprint, what is written again and again is not worth following.
        let limit = ctx.mirror == Mirror::Auto && !sprint;
        dev.mirror_limited.store(limit, Ordering::Relaxed);
        // In the last window all is worth a copy, whatever the scan before it said. And not all areas
        // may have found a place, while those that did have been dealt with.
        let more = last && self.stage.truncated && self.stage.next >= self.stage.len;
        if more || (last && !self.stage.in_last_window) || (sprint && !self.stage.sprint) {
            self.stage.next_tick_ns = now;
        }
        if sprint && !self.stage.sprint {
            // What is left of the list before is on the new one as well.
            self.stage.begin_scan();
        }
        self.stage.in_last_window = last;
        self.stage.sprint = sprint;
        let due = now >= self.stage.next_tick_ns;
        if due && self.stage.scan == Scan::Done {
            // With T0 near, what was decided a tick ago is soon out of date.
            let tick = self.dev.knobs.ms_as_ns(Knob::TickMs);
            let left = ctx.time_to_t0_ns.unwrap_or(u64::MAX);
            let tick = tick.min((left / 8).max(NEAR_TICK_NS));
            self.stage.next_tick_ns = now.saturating_add(tick);
            let active = self.stage.predictor.activity().count();
            dev.areas_active.store(active as u64, Ordering::Relaxed);
            self.stage.begin_scan();
            self.premark_streams(now);
        }
        // Writers that wait come first.
        if self.stage.scan != Scan::Done && !self.parked.waiting() {
            // There is more of it, and breathing is seen to.
            self.progress = true;
            let begun = monotonic_ns();
            self.predict(kind, now);
            let spent = monotonic_ns().saturating_sub(begun);
            self.stage.scan_ns = self.stage.scan_ns.saturating_add(spent);
            if self.stage.scan == Scan::Done {
                self.bound_scans(now);
            }
        }
        self.issue_staging(now);
    }

    /// Has the region say where streams are about to write, so that their first writes need not wait for it.
    fn premark_streams(&mut self, now: u64) {
        let n = self.stage.predictor.ahead(now, PREMARK_NS, &mut self.stage.ahead);
        for i in 0..n {
            let Some(area) = self.stage.ahead.get(i).map(|ahead| ahead.area) else { break };
            self.premark_area(area);
        }
    }

    /// Puts the next tick off, if need be, so that scoring takes no more than its share of a CPU.
    fn bound_scans(&mut self, now: u64) {
        let times = if self.stage.in_last_window { SCAN_SHARE_NEAR } else { SCAN_SHARE };
        let earliest = now.saturating_add(self.stage.scan_ns.saturating_mul(times));
        self.stage.next_tick_ns = self.stage.next_tick_ns.max(earliest);
    }

    /// Scores some areas, and when all have been, puts the candidates in order.
    fn predict(&mut self, kind: PredictorKind, now: u64) {
        let ctx = self.context(now);
        let horizon = ctx.horizon_before_ns().max(1);
        let dev = self.dev.clone();
        let models = dev.models.lock();
        let model = models.model();
        let stage = &mut self.stage;
        let g = &dev.generations;
        let sprint = ctx.in_sprint();
        let per_pass = if sprint { SPRINTED_PER_PASS } else { SCORED_PER_PASS };
        let mut looked = 0;
        while stage.scan == Scan::Dirty && looked < per_pass {
            let found = g.dirty().next_area(stage.cursor);
            let Some(area) = found.filter(|_| stage.len < CANDIDATES) else {
                // The next scan begins where this one had to stop.
                stage.truncated = found.is_some();
                if found.is_none() {
                    stage.cursor = 0;
                }
                stage.scan = Scan::Clean;
                break;
            };
            looked = looked.saturating_add(1);
            stage.cursor = area.saturating_add(1);
            let view = AreaView {
                dirty: g.dirty().area_mask(area),
                valid: g.staged().area_mask(area),
                stale: 0,
                preserved_needed_clean: false,
            };
            if view.unstaged() == 0 {
                continue;
            }
            if sprint {
                // Everything is copied, and there is no time to think about the order.
                let view = AreaView { stale: 0, ..view };
                let ranked = policy::decide(&view, Prob::ONE, Prob::ONE, &ctx);
                let (value, decision) = (ranked.value, ranked.decision);
                stage.push(Candidate { value, area, decision, score: Prob::ONE });
                continue;
            }
            let p_before = stage.predictor.score(kind, model, area, now, horizon);
            let p_after = if ctx.scope_image {
                stage.predictor.score(kind, model, area, now, AFTER_NS)
            } else {
                p_before
            };
            stage.scored = stage.scored.wrapping_add(1);
            if stage.scored % 64 == 1 {
                stage.sample(&dev, now, area, p_before, horizon);
            }
            let mut ranked = policy::decide(&view, p_before, p_after, &ctx);
            // Only an area near the threshold, or one about to be mirrored, is judged otherwise for
            // having gone stale before.
            let near = p_before.0 >= ctx.threshold.0 / 2 && p_before < ctx.threshold;
            let mirrored = matches!(ranked.decision, Decision::StageMirrored { .. });
            if (near || mirrored) && ranked.decision != Decision::None {
                let stale = stale_mask(&dev, area, view.unstaged());
                ranked = policy::decide(&AreaView { stale, ..view }, p_before, p_after, &ctx);
            }
            if ranked.decision != Decision::None {
                let (value, decision) = (ranked.value, ranked.decision);
                stage.push(Candidate { value, area, decision, score: p_before });
            }
        }
        if stage.scan == Scan::Dirty {
            return;
        }
        let clean = ctx.scope_image
            && ctx.time_to_t0_ns.is_some_and(|t| t <= policy::CLEAN_WINDOW_NS)
            && stage.len < CANDIDATES;
        if clean {
            let mut areas = [0u64; SCORED_PER_PASS];
            let n = stage.next_clean(now, &mut areas);
            for area in areas.iter().copied().take(n) {
                if area >= g.dirty().areas() {
                    continue;
                }
                let dirty = g.dirty().area_mask(area);
                let view = AreaView {
                    dirty: 0,
                    valid: g.staged().area_mask(area) | dirty,
                    stale: 0,
                    preserved_needed_clean: true,
                };
                if view.unstaged_clean() == 0 {
                    continue;
                }
                let p_before = stage.predictor.score(kind, model, area, now, horizon);
                let p_after = stage.predictor.score(kind, model, area, now, AFTER_NS);
                let ranked = policy::decide(&view, p_before, p_after, &ctx);
                if ranked.decision != Decision::None {
                    let (value, decision) = (ranked.value, ranked.decision);
                    stage.push(Candidate { value, area, decision, score: p_after });
                }
            }
        } else {
            stage.scan = Scan::Done;
        }
        if stage.scan == Scan::Done {
            if let Some(candidates) = stage.candidates.get_mut(..stage.len) {
                sort_descending(candidates, |c| c.value);
            }
        }
    }

    /// Starts copies of candidates, as far as budget, bandwidth and foreground allow.
    fn issue_staging(&mut self, now: u64) {
        let knobs = &self.dev.knobs;
        let kib = knobs.get(Knob::CopyBandwidthKib);
        let per_s = u32::try_from(kib / 4).unwrap_or(u32::MAX);
        let per_s = if kib > 0 { per_s.max(1) } else { 0 };
        if self.stage.throttle.config().blocks_per_s != per_s {
            let config = ThrottleConfig { blocks_per_s: per_s, ..ThrottleConfig::default() };
            self.stage.throttle.configure(config);
        }
        if self.stage.scan != Scan::Done {
            return;
        }
        let foreground = self.dev.gate.in_flight().min(u32::MAX.into()) as u32;
        self.stage.throttle.earn(now, foreground);
        if knobs.get(Knob::DryRun) == 1 {
            self.stage.next = self.stage.len;
            return;
        }
        let budget = match knobs.get(Knob::StagingBudgetBlocks) {
            0 => u64::from(self.dev.layout().slots / 2),
            n => n,
        };
        if self.stage.next < self.stage.len {
            self.dev.staging.store(true, Ordering::SeqCst);
        }
        let ctx = self.context(now);
        // Some of the time is for what goes wrong.
        let left = ctx.time_to_t0_ns.map(|left| left / 4 * 3);
        self.pacer.hurry(left.map(|left| (ctx.remaining_dirty_blocks, left)));
        while self.stage.next < self.stage.len
            && self.jobs.staging < COPIES_AT_ONCE
            && self.jobs.guards == 0
            && self.pacer.ready()
        {
            let Some(c) = self.stage.candidates.get(self.stage.next).copied() else { break };
            if self.dev.generations.staged().count() >= budget {
                self.stage.next = self.stage.len;
                break;
            }
            if !self.stage_area(&c) {
                break;
            }
            self.stage.next = self.stage.next.saturating_add(1);
        }
    }

    /// Starts the copies of an area; `false` if it has to wait.
    fn stage_area(&mut self, c: &Candidate) -> bool {
        let g = &self.dev.generations;
        // What was decided at the tick may not be needed any more.
        let mask = c.decision.mask() & g.staged().missing(c.area);
        let clean = matches!(c.decision, Decision::StageClean { .. });
        let mask = if clean { mask & !g.dirty().area_mask(c.area) } else { mask };
        let purpose = match c.decision {
            Decision::StageClean { .. } => Purpose::StageClean,
            Decision::StageMirrored { .. } => Purpose::Stage { mirror: true },
            _ => Purpose::Stage { mirror: false },
        };
        // The surer the score, the more exact the chunks: an unsure one covers the gaps between
        // what was asked for, so that the copy is sequential.
        let mask = chunker::chunks(mask, chunker::confidence(c.score))
            .fold(0u16, |wide, run| wide | run_mask(run))
            & if clean { !g.dirty().area_mask(c.area) } else { g.dirty().area_mask(c.area) }
            // Never copy again what is staged: a mirror may be writing to its slot.
            & g.staged().missing(c.area);
        let id = self.coming_id();
        let wanted = mask.count_ones();
        let granted = self.stage.throttle.take(wanted);
        if granted < wanted {
            self.stage.throttle.give_back(granted);
            return false;
        }
        match self.start_copy(purpose, id, c.area, mask) {
            Ok(started) => {
                self.stage.holds_slots = true;
                self.stage.throttle.give_back(wanted.saturating_sub(started.count_ones()));
                self.pacer.spend(cost_of(started));
                self.progress = true;
                true
            }
            // Nothing to copy, or it is being written: at the next tick.
            Err(NotStarted::Busy) => {
                self.stage.throttle.give_back(wanted);
                true
            }
            Err(NotStarted::Full) => {
                // Staging yields: whoever needs the rest of the region may have it.
                self.stage.throttle.give_back(wanted);
                self.stage.next = self.stage.len;
                false
            }
        }
    }

    /// Gives up what is staged, to make room; returns how many slots that freed, those of stale copies
    /// among them.
    pub(super) fn drop_staged(&mut self) -> u64 {
        if self.stage.holds_slots {
            self.forget_staged()
        } else {
            0
        }
    }

    /// Nothing is staged any more.
    pub(super) fn forget_staged(&mut self) -> u64 {
        let g = &self.dev.generations;
        g.staged().clear_all();
        g.mirrored.clear_all();
        let id = self.dev.coming();
        let mut freed = 0u64;
        for slot in 0..self.dev.layout().slots {
            let mine = {
                let mut slots = self.dev.slots.lock();
                let held = slots.entry(slot);
                let mine = held.is_some_and(|e| e.snapshot == id && e.kind == SlotKind::Data);
                if mine {
                    slots.free(slot);
                }
                mine
            };
            if mine {
                freed = freed.saturating_add(1);
                self.index.mark(&self.dev.layout(), slot, 1, false);
            }
        }
        self.stage.holds_slots = false;
        freed
    }
}
