// SPDX-License-Identifier: GPL-2.0-only

//! The predictor: observes bios, and says how likely an area is written within a horizon.
//!
//! Observing is O(areas of the bio) and does no inference; scoring is done by a worker in batches.
//! One score serves both questions of the policy: with the time to T0 as the horizon it says how
//! likely a staged copy goes stale, with the time after T0 how likely a guard will have to stall a
//! writer.

use crate::activity::{ActivityTable, AreaState, COUNT_ONE};
use crate::features::{FeatureVector, Inputs};
use crate::fixed::{decay, ns_to_ms, Prob, Tau};
use crate::model::{heuristic, Model};
use crate::record::IoRecord;
use crate::stream::{AreaAhead, StreamHead, StreamTable};
use core::ops::{Deref, DerefMut};

/// Areas that are remembered unless the caller has a reason for another number: 3.5 MiB, for 4 GiB of
/// active areas. The trainer uses the same, so that features are the same.
pub const DEFAULT_AREAS: usize = 65_536;
/// Stream heads that are remembered, likewise: 200 KiB.
pub const DEFAULT_STREAM_HEADS: usize = 4096;

/// Who predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PredictorKind {
    /// Nobody: nothing is staged.
    #[default]
    Off = 0,
    /// Time since the last write.
    Age = 1,
    /// Decayed write count of the last ten minutes.
    Ewma = 2,
    /// Look-ahead of sequential streams.
    Stream = 3,
    /// The loaded model.
    Model = 4,
}

impl PredictorKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Off, Self::Age, Self::Ewma, Self::Stream, Self::Model];

    /// The name that is used in sysfs, messages and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Age => "age",
            Self::Ewma => "ewma",
            Self::Stream => "stream",
            Self::Model => "model",
        }
    }

    /// Returns the kind of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// Returns the kind of a number in a snapshot record.
    pub fn from_wire(n: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == n)
    }
}

/// The write rate of the device, and its bursts.
///
/// A burst begins when the rate of the last second is three times that of the last minute, and ends
/// when it has come down to one and a half times.
#[derive(Clone, Copy, Debug, Default)]
struct DeviceRate {
    d1: u32,
    d60: u32,
    last_write_ms: u64,
    first_write_ms: Option<u64>,
    burst_start_ms: Option<u64>,
    in_burst: bool,
}

impl DeviceRate {
    /// A burst has at least this many writes in its first second.
    const BURST_WRITES: u32 = 8 * COUNT_ONE;

    fn write(&mut self, now_ms: u64, weight: u32) {
        let dt = now_ms.saturating_sub(self.last_write_ms);
        self.first_write_ms = self.first_write_ms.or(Some(now_ms));
        self.last_write_ms = self.last_write_ms.max(now_ms);
        let d1 = decay(self.d1, dt, Tau::SECONDS_1);
        let d60 = decay(self.d60, dt, Tau::SECONDS_60);
        // Both as writes a minute; the products of 32-bit numbers by small ones fit 64 bits.
        if u64::from(d1) * 120 < u64::from(d60) * 3 {
            self.in_burst = false;
        }
        let count = COUNT_ONE.saturating_mul(weight);
        self.d1 = d1.saturating_add(count);
        self.d60 = d60.saturating_add(count);
        if !self.in_burst
            && self.d1 >= Self::BURST_WRITES
            && u64::from(self.d1) * 60 > u64::from(self.d60) * 3
        {
            self.in_burst = true;
            self.burst_start_ms = Some(self.last_write_ms);
        }
    }
}

/// Everything that is known of a device's writes.
#[derive(Debug)]
pub struct Predictor<A, S> {
    activity: ActivityTable<A>,
    streams: StreamTable<S>,
    rate: DeviceRate,
}

impl<A, S> Predictor<A, S>
where
    A: Deref<Target = [AreaState]>,
    S: Deref<Target = [StreamHead]>,
{
    /// Takes over zeroed storage; `None` if it is too small (8 areas, 72 stream heads).
    pub fn new(areas: A, streams: S) -> Option<Self> {
        Some(Self {
            activity: ActivityTable::new(areas)?,
            streams: StreamTable::new(streams)?,
            rate: DeviceRate::default(),
        })
    }

    /// Probability that `area` is written between `now_ns` and `horizon_ns` later.
    ///
    /// [`PredictorKind::Model`] with no model loaded predicts as [`PredictorKind::Ewma`].
    pub fn score<B: Deref<Target = [u8]>>(
        &self,
        kind: PredictorKind,
        model: Option<&Model<B>>,
        area: u64,
        now_ns: u64,
        horizon_ns: u64,
    ) -> Prob {
        match (kind, model) {
            (PredictorKind::Model, Some(model)) => {
                model.infer(&self.features(area, now_ns, horizon_ns))
            }
            _ => self.score_heuristic(kind, area, now_ns, horizon_ns),
        }
    }

    /// [`Predictor::score`] without a model.
    pub fn score_heuristic(
        &self,
        kind: PredictorKind,
        area: u64,
        now_ns: u64,
        horizon_ns: u64,
    ) -> Prob {
        let now_ms = ns_to_ms(now_ns);
        let mut inputs = Inputs { horizon_ms: ns_to_ms(horizon_ns), ..Inputs::default() };
        if let Some(a) = self.activity.get(area) {
            inputs.age_ms = Some(a.age_ms(now_ms));
            inputs.d600 = a.d600_at(now_ms);
            inputs.observed_ms =
                self.rate.first_write_ms.map_or(0, |at| now_ms.saturating_sub(at).max(1));
        }
        match kind {
            PredictorKind::Off => Prob::ZERO,
            PredictorKind::Age => heuristic::age(&inputs),
            PredictorKind::Ewma | PredictorKind::Model => heuristic::ewma(&inputs),
            PredictorKind::Stream => {
                heuristic::stream(self.streams.heading_for(area, now_ns).as_ref(), horizon_ns)
            }
        }
    }

    /// The features of an area at `now_ns` for a horizon.
    pub fn features(&self, area: u64, now_ns: u64, horizon_ns: u64) -> FeatureVector {
        self.inputs(area, now_ns, horizon_ns).features()
    }

    /// What the features are made of.
    pub fn inputs(&self, area: u64, now_ns: u64, horizon_ns: u64) -> Inputs {
        let now_ms = ns_to_ms(now_ns);
        let mut inputs = Inputs {
            stream_eta_ms: self.streams.heading_for(area, now_ns).map(|a| ns_to_ms(a.eta_ns)),
            since_burst_ms: self.rate.burst_start_ms.map(|at| now_ms.saturating_sub(at)),
            horizon_ms: ns_to_ms(horizon_ns),
            ..Inputs::default()
        };
        if let Some(a) = self.activity.get(area) {
            let known = |ms: u32| (ms != 0).then_some(u64::from(ms));
            inputs.age_ms = Some(a.age_ms(now_ms));
            inputs.d10 = a.d10_at(now_ms);
            inputs.d60 = a.d60_at(now_ms);
            inputs.d600 = a.d600_at(now_ms);
            inputs.mean_gap_ms = known(a.mean_gap_ms);
            inputs.last_gap_ms = known(a.last_gap_ms);
            inputs.visits = a.visits;
            inputs.lifetime_ms = now_ms.saturating_sub(a.first_write_ms);
        }
        if let Some(left) = area.checked_sub(1).and_then(|left| self.activity.get(left)) {
            inputs.left_d10 = left.d10_at(now_ms);
        }
        if let Some(region) = self.activity.region(area) {
            inputs.region_d10 = region.d10_at(now_ms);
        }
        inputs
    }

    /// Fills `out` with the areas that sequential streams are about to reach; see
    /// [`StreamTable::ahead`].
    pub fn ahead(&self, now_ns: u64, horizon_ns: u64, out: &mut [AreaAhead]) -> usize {
        self.streams.ahead(now_ns, horizon_ns, out)
    }

    /// Fills `out` with remembered areas, going on at the cursor; see
    /// [`ActivityTable::iter_active`].
    pub fn iter_active(&self, cursor: &mut usize, out: &mut [u64]) -> usize {
        self.activity.iter_active(cursor, out)
    }

    /// What is remembered of the areas.
    pub const fn activity(&self) -> &ActivityTable<A> {
        &self.activity
    }

    /// The streams.
    pub const fn streams(&self) -> &StreamTable<S> {
        &self.streams
    }

    /// Writes of the last minute, decayed, in units of 1/[`COUNT_ONE`].
    pub fn device_d60(&self, now_ns: u64) -> u32 {
        let dt = ns_to_ms(now_ns).saturating_sub(self.rate.last_write_ms);
        decay(self.rate.d60, dt, Tau::SECONDS_60)
    }
}

impl<A, S> Predictor<A, S>
where
    A: DerefMut<Target = [AreaState]>,
    S: DerefMut<Target = [StreamHead]>,
{
    /// Accounts a bio.
    pub fn observe(&mut self, record: &IoRecord) {
        self.observe_weighted(record, 1);
    }

    /// Accounts a bio that stands for `weight` like it.
    ///
    /// Counts stay right in the mean; streams see only the bios that are given, so a sample should
    /// be of neighbours in time.
    pub fn observe_weighted(&mut self, record: &IoRecord, weight: u32) {
        self.activity.observe_weighted(record, weight);
        if record.kind.modifies() && record.sectors != 0 {
            self.rate.write(ns_to_ms(record.time_ns), weight);
            self.streams.observe(record);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.activity.clear();
        self.streams.clear();
        self.rate = DeviceRate::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::IoKind;

    const S: u64 = 1_000_000_000;

    fn predictor() -> Predictor<Vec<AreaState>, Vec<StreamHead>> {
        Predictor::new(vec![AreaState::EMPTY; 1024], vec![StreamHead::EMPTY; 1024]).unwrap()
    }

    fn write(time_ns: u64, area: u64) -> IoRecord {
        IoRecord { time_ns, op: 0, sector: area * 128, sectors: 8, kind: IoKind::Write }
    }

    #[test]
    fn names_round_trip() {
        for kind in PredictorKind::ALL {
            assert_eq!(PredictorKind::from_name(kind.name()), Some(kind));
            assert_eq!(PredictorKind::from_wire(kind as u8), Some(kind));
        }
        assert_eq!(PredictorKind::from_name("nobody"), None);
        assert_eq!(PredictorKind::from_wire(5), None);
    }

    #[test]
    fn busy_areas_score_higher() {
        let mut p = predictor();
        for i in 0..60 {
            p.observe(&write(i * S, 5));
        }
        p.observe(&write(10 * S, 9));
        let now = 60 * S;
        for kind in [PredictorKind::Age, PredictorKind::Ewma] {
            let score = |area| p.score(kind, None::<&Model<&[u8]>>, area, now, 10 * S);
            assert!(score(5) > score(9), "{kind:?}");
            assert!(score(9) > score(100), "{kind:?}");
        }
        let score = |h| p.score_heuristic(PredictorKind::Ewma, 5, now, h);
        assert!(score(S) < score(10 * S));
        assert_eq!(p.score_heuristic(PredictorKind::Off, 5, now, S), Prob::ZERO);
        assert_eq!(
            p.score(PredictorKind::Model, None::<&Model<&[u8]>>, 5, now, S),
            p.score_heuristic(PredictorKind::Ewma, 5, now, S)
        );
    }

    #[test]
    fn streams_score_where_nothing_was_written() {
        let mut p = predictor();
        for i in 0..100 {
            p.observe(&IoRecord {
                time_ns: i * S / 100,
                op: i,
                sector: i * 128,
                sectors: 128,
                kind: IoKind::Write,
            });
        }
        let score = |area| p.score_heuristic(PredictorKind::Stream, area, S, S);
        assert!(score(101) > Prob::HALF);
        assert!(score(101) > score(180));
        assert_eq!(score(5_000), Prob::ZERO);
        let inputs = p.inputs(150, S, S);
        assert!(inputs.stream_eta_ms.is_some() && inputs.age_ms.is_none());
        let mut out = [AreaAhead::default(); 16];
        assert_eq!(p.ahead(S, S, &mut out), 16);
    }

    #[test]
    fn features_of_an_area() {
        let mut p = predictor();
        for t in [100, 130, 160] {
            p.observe(&write(t * S, 20));
        }
        p.observe(&write(165 * S, 19));
        let i = p.inputs(20, 170 * S, 5 * S);
        assert_eq!(i.age_ms, Some(10_000));
        assert_eq!((i.last_gap_ms, i.mean_gap_ms), (Some(30_000), Some(30_000)));
        assert_eq!((i.visits, i.lifetime_ms, i.horizon_ms), (3, 70_000, 5_000));
        assert!(i.left_d10 > 0 && i.region_d10 > i.left_d10);
    }

    #[test]
    fn bursts_are_seen() {
        let mut p = predictor();
        // A trickle of a write a second, and 100 writes at once every 20 s.
        for second in 0..200u64 {
            p.observe(&write(second * S, 1));
            if second % 20 == 0 {
                for i in 0..100 {
                    p.observe(&write(second * S + i * S / 1000, 100 + i));
                }
            }
        }
        for second in [181, 190, 199] {
            let since = p.inputs(1, second * S, S).since_burst_ms.unwrap();
            assert!(since.abs_diff((second - 180) * 1000) < 200, "{second}: {since}");
        }
    }

    #[test]
    fn clear_forgets() {
        let mut p = predictor();
        p.observe(&write(S, 3));
        p.clear();
        assert!(p.activity().get(3).is_none());
        assert_eq!(p.device_d60(S), 0);
    }
}
