// SPDX-License-Identifier: GPL-2.0-only

//! Samples of a trace: features at an instant, and whether the area was then written.
//!
//! The trace is replayed through the engine's predictor. At random instants, areas among the
//! candidates (remembered and written within the last ten minutes, or ahead of a stream: what the
//! kernel's worker scores) are sampled with horizons. The first part of the time is for training,
//! and no label of it looks into the rest; the last part is held out.

use crate::progress::Progress;
use crate::random::Random;
use crate::source::Trace;
use anyhow::{ensure, Result};
use presnap_engine::activity::{AreaState, MAX_AREAS_PER_BIO};
use presnap_engine::features::FeatureVector;
use presnap_engine::fixed::Prob;
use presnap_engine::geometry::{area_of, blocks_touched};
use presnap_engine::predictor::{Predictor, PredictorKind, DEFAULT_AREAS, DEFAULT_STREAM_HEADS};
use presnap_engine::stream::{AreaAhead, StreamHead};
use std::collections::HashMap;

const S: u64 = 1_000_000_000;
/// Candidates are areas written this recently.
const RECENT_NS: u64 = 600 * S;
/// Streams look ahead this far for candidates.
const AHEAD_NS: u64 = 30 * S;
/// The shortest horizon that is trained.
const HORIZON_MIN_NS: u64 = S / 2;
/// Share of the time that is for training, in percent.
pub const TRAINING_PERCENT: u64 = 70;
/// Horizons that the held-out part is judged at, in seconds.
pub const JUDGED_HORIZONS_S: [u64; 6] = [1, 5, 10, 30, 60, 300];

/// How much is sampled.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Instants of the training part.
    pub training_instants: usize,
    /// Instants of the held-out part.
    pub judging_instants: usize,
    /// Areas of an instant, at most.
    pub areas: usize,
    /// Horizons of a training area.
    pub horizons: usize,
    /// Longest horizon: how far a snapshot may be away.
    pub interval_ns: u64,
    /// Seed.
    pub seed: u64,
}

/// A sample to train on.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Features, the horizon among them.
    pub features: FeatureVector,
    /// Written within the horizon.
    pub written: bool,
}

/// A sample to judge by, with what the heuristics say.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// The sample.
    pub sample: Sample,
    /// Index into [`JUDGED_HORIZONS_S`].
    pub horizon: usize,
    /// Rank by `age`: larger is likelier.
    pub age: u64,
    /// Rank by `ewma`: the unrounded counter.
    pub ewma: u64,
    /// Probability by `ewma`.
    pub ewma_prob: Prob,
}

/// The samples of a trace.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// To train on.
    pub training: Vec<Sample>,
    /// To judge by, held out.
    pub held_out: Vec<Judged>,
    /// How many areas were forgotten for lack of memory.
    pub evictions: u64,
}

/// The times each area is written.
struct Writes(HashMap<u64, Vec<u64>>);

impl Writes {
    fn of(trace: &Trace) -> Self {
        let mut times: HashMap<u64, Vec<u64>> = HashMap::new();
        for r in trace.records.iter().filter(|r| r.kind.modifies()) {
            let (block, blocks) = blocks_touched(r.sector, r.sectors);
            if blocks == 0 {
                continue;
            }
            let (first, last) = (area_of(block), area_of(block + blocks - 1));
            for area in (first..=last).take(MAX_AREAS_PER_BIO as usize) {
                times.entry(area).or_default().push(r.time_ns);
            }
        }
        Self(times)
    }

    /// Time of the first write to `area` after `now`.
    fn next(&self, area: u64, now: u64) -> Option<u64> {
        let times = self.0.get(&area)?;
        times.get(times.partition_point(|t| *t <= now)).copied()
    }
}

/// Replays a trace and samples it.
pub fn sample(trace: &Trace, plan: &Plan, progress: &mut Progress) -> Result<Samples> {
    let mut random = Random::new(plan.seed);
    let (start, end) = (trace.start_ns(), trace.end_ns());
    let split = start + trace.duration_ns() / 100 * TRAINING_PERCENT;
    let warm = start + (trace.duration_ns() / 20).min(60 * S);
    // Instants of both parts, in order; true is held out.
    let mut instants: Vec<(u64, bool)> = Vec::new();
    let mut draw = |count, from: u64, to: u64, held_out| {
        for _ in 0..count {
            instants.push((from + random.below(to.saturating_sub(from)), held_out));
        }
    };
    draw(plan.training_instants, warm, split - HORIZON_MIN_NS, false);
    draw(plan.judging_instants, split, end - S, true);
    instants.sort_unstable();
    let writes = Writes::of(trace);
    let areas = vec![AreaState::EMPTY; DEFAULT_AREAS];
    let heads = vec![StreamHead::EMPTY; DEFAULT_STREAM_HEADS];
    let mut state = State {
        predictor: Predictor::new(areas, heads).expect("the default sizes are large enough"),
        writes,
        random,
        plan: *plan,
        split,
        end,
        samples: Samples::default(),
    };
    let mut instants = instants.into_iter().peekable();
    let all = trace.records.len() as u64;
    for (no, record) in trace.records.iter().enumerate() {
        while let Some((now, held_out)) = instants.next_if(|(at, _)| *at < record.time_ns) {
            state.at(now, held_out);
        }
        state.predictor.observe(record);
        progress.at(no as u64, all, "");
    }
    let mut samples = state.samples;
    samples.evictions = state.predictor.activity().evictions();
    let positive = samples.training.iter().filter(|s| s.written).count();
    ensure!(
        positive >= 50 && samples.training.len() - positive >= 50,
        "{}: of {} training samples {positive} are positive: too few of one kind to learn from",
        trace.name,
        samples.training.len()
    );
    Ok(samples)
}

struct State {
    predictor: Predictor<Vec<AreaState>, Vec<StreamHead>>,
    writes: Writes,
    random: Random,
    plan: Plan,
    split: u64,
    end: u64,
    samples: Samples,
}

impl State {
    /// Samples the areas of an instant.
    fn at(&mut self, now: u64, held_out: bool) {
        let mut candidates = self.candidates(now);
        let some = self.random.choose(&mut candidates, self.plan.areas).to_vec();
        for area in some {
            if held_out {
                self.judge(area, now);
            } else {
                self.train(area, now);
            }
        }
    }

    /// The areas that the kernel's worker would score, sorted.
    fn candidates(&self, now: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let (mut cursor, mut out) = (0, [0; 512]);
        loop {
            let count = self.predictor.iter_active(&mut cursor, &mut out);
            found.extend_from_slice(&out[..count]);
            if cursor == 0 {
                break;
            }
        }
        let recent_ms = RECENT_NS / 1_000_000;
        let age = |area| self.predictor.activity().get(area).map(|a| a.age_ms(now / 1_000_000));
        found.retain(|area| age(*area).is_some_and(|age| age <= recent_ms));
        let mut ahead = [AreaAhead::default(); 256];
        let count = self.predictor.ahead(now, AHEAD_NS, &mut ahead);
        found.extend(ahead[..count].iter().map(|a| a.area));
        found.sort_unstable();
        found.dedup();
        found
    }

    fn train(&mut self, area: u64, now: u64) {
        // No label looks beyond the split.
        let longest = self.plan.interval_ns.min(self.split - now);
        for _ in 0..self.plan.horizons {
            let horizon =
                self.random.log_uniform(HORIZON_MIN_NS as f64, longest as f64).round() as u64;
            let sample = self.sample(area, now, horizon.min(longest));
            self.samples.training.push(sample);
        }
    }

    fn judge(&mut self, area: u64, now: u64) {
        for (horizon, seconds) in JUDGED_HORIZONS_S.into_iter().enumerate() {
            let horizon_ns = seconds * S;
            // A label must be known, and of a long horizon there must be several in the held-out
            // part, or it is one event that is judged.
            let room = (self.end - self.split) / 3;
            if horizon_ns > self.plan.interval_ns.min(room) || now + horizon_ns > self.end {
                continue;
            }
            let state = self.predictor.activity().get(area);
            let ewma = PredictorKind::Ewma;
            let judged = Judged {
                sample: self.sample(area, now, horizon_ns),
                horizon,
                age: state.map_or(0, |a| u64::MAX - a.age_ms(now / 1_000_000)),
                ewma: state.map_or(0, |a| u64::from(a.d600_at(now / 1_000_000))),
                ewma_prob: self.predictor.score_heuristic(ewma, area, now, horizon_ns),
            };
            self.samples.held_out.push(judged);
        }
    }

    fn sample(&self, area: u64, now: u64, horizon: u64) -> Sample {
        Sample {
            features: self.predictor.features(area, now, horizon),
            written: self.writes.next(area, now).is_some_and(|at| at <= now + horizon),
        }
    }
}
