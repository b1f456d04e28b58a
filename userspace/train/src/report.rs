// SPDX-License-Identifier: GPL-2.0-only

//! Judging a model on held-out samples, by horizon and trace.

use crate::metrics::{mean, quality, Quality};
use crate::network::{Input, Network};
use crate::samples::{Judged, JUDGED_HORIZONS_S};
use presnap_engine::accounting::Accounting;
use presnap_engine::model::Model;
use serde::Serialize;

/// A quality in a report.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Score {
    /// Area under the ROC curve.
    pub auc: f64,
    /// Average precision.
    pub ap: f64,
}

impl From<Quality> for Score {
    fn from(q: Quality) -> Self {
        let round = |x: f64| (x * 1e4).round() / 1e4;
        Self { auc: round(q.auc), ap: round(q.ap) }
    }
}

/// How the model and the heuristics do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    /// Samples.
    pub samples: usize,
    /// Share of them that were written.
    pub base: f64,
    /// The model as the kernel runs it.
    pub model: Score,
    /// The same before it was quantised.
    pub model_float: Score,
    /// Decayed write count of ten minutes.
    pub ewma: Score,
    /// Time since the last write.
    pub age: Score,
}

/// The held-out part of a trace.
#[derive(Clone, Debug, Serialize)]
pub struct TraceReport {
    /// The trace.
    pub trace: String,
    /// By horizon in seconds.
    pub horizons: Vec<(u64, Comparison)>,
    /// Mean over the horizons; `None` if nothing could be judged.
    pub mean: Option<Comparison>,
    /// Mean distance between predicted and observed probability.
    pub calibration_error: f64,
    /// Mean squared error of the probability.
    pub brier: f64,
    /// The same of `ewma`.
    pub brier_ewma: f64,
}

/// Judges a model on the held-out samples of a trace.
pub fn judge(
    trace: &str,
    held_out: &[Judged],
    model: &Model<Vec<u8>>,
    network: &Network,
    input: impl Fn(&Judged) -> Input,
) -> TraceReport {
    let mut horizons = Vec::new();
    for (index, seconds) in JUDGED_HORIZONS_S.into_iter().enumerate() {
        let of: Vec<_> = held_out.iter().filter(|j| j.horizon == index).collect();
        let by = |score: &dyn Fn(&Judged) -> f64| {
            quality(of.iter().map(|j| (score(j), j.sample.written)))
        };
        let rank = |score: &dyn Fn(&Judged) -> u64| {
            quality(of.iter().map(|j| (score(j), j.sample.written)))
        };
        let (Some(int8), Some(float), Some(ewma), Some(age)) = (
            by(&|j| f64::from(model.logit_q8(&j.sample.features))),
            by(&|j| f64::from(network.logit(&input(j)))),
            rank(&|j| j.ewma),
            rank(&|j| j.age),
        ) else {
            continue;
        };
        let positive = of.iter().filter(|j| j.sample.written).count();
        let comparison = Comparison {
            samples: of.len(),
            base: (positive as f64 / of.len() as f64 * 1e4).round() / 1e4,
            model: int8.into(),
            model_float: float.into(),
            ewma: ewma.into(),
            age: age.into(),
        };
        horizons.push((seconds, comparison));
    }
    let (mut ours, mut ewmas) = (Accounting::ZERO, Accounting::ZERO);
    for j in held_out {
        ours.record(model.infer(&j.sample.features), j.sample.written);
        ewmas.record(j.ewma_prob, j.sample.written);
    }
    let part = |p: presnap_engine::fixed::Prob| f64::from(p.permille()) / 1000.0;
    TraceReport {
        trace: trace.into(),
        mean: average(horizons.iter().map(|h| &h.1)),
        horizons,
        calibration_error: part(ours.calibration_error()),
        brier: part(ours.brier()),
        brier_ewma: part(ewmas.brier()),
    }
}

/// Mean of comparisons; `None` of none.
pub fn average<'a>(of: impl Iterator<Item = &'a Comparison>) -> Option<Comparison> {
    let of: Vec<_> = of.collect();
    let score = |f: &dyn Fn(&Comparison) -> Score| -> Option<Score> {
        let all: Vec<_> =
            of.iter().map(|c| f(c)).map(|s| Quality { auc: s.auc, ap: s.ap }).collect();
        mean(&all).map(Score::from)
    };
    Some(Comparison {
        samples: of.iter().map(|c| c.samples).sum(),
        base: (of.iter().map(|c| c.base).sum::<f64>() / of.len() as f64 * 1e4).round() / 1e4,
        model: score(&|c| c.model)?,
        model_float: score(&|c| c.model_float)?,
        ewma: score(&|c| c.ewma)?,
        age: score(&|c| c.age)?,
    })
}
