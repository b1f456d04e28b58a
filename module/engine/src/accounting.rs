// SPDX-License-Identifier: GPL-2.0-only

//! What was predicted, and what happened: per snapshot, and summed up.
//!
//! Two views. *Copies*, in blocks: what staging spent and what it was good for. *Predictions*, one a
//! scored area: was an area said to be written, was it, and do the probabilities mean what they say
//! (calibration, Brier score). All counters saturate.

use crate::fixed::Prob;

/// Number of calibration buckets: 0-10 %, 10-20 %, ...
pub const BUCKETS: usize = 10;

/// The predictions of a range of probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Predictions.
    pub count: u64,
    /// How many of them came true.
    pub happened: u64,
    /// Sum of the probabilities.
    pub sum_prob: u64,
}

impl Bucket {
    /// Mean of the predicted probabilities.
    pub const fn predicted(&self) -> Prob {
        match self.sum_prob.checked_div(self.count) {
            Some(mean) if mean < 65535 => Prob(mean as u16),
            Some(_) => Prob::ONE,
            None => Prob::ZERO,
        }
    }

    /// Share that came true.
    pub const fn observed(&self) -> Prob {
        Prob::from_ratio(self.happened, self.count)
    }
}

/// Counters of a snapshot, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Staged blocks that were of use: valid at T0, or a guard met them.
    pub hits: u64,
    /// Blocks that had to be copied at or after T0: no valid copy was there.
    pub misses: u64,
    /// Staged blocks that were of no use: clean ones that nobody overwrote.
    pub wasted: u64,
    /// Staged copies that were overwritten before T0.
    pub stale: u64,
    /// Predictions made and judged.
    pub predictions: u64,
    /// Said to be written, and written.
    pub true_positives: u64,
    /// Said to be written, and not.
    pub false_positives: u64,
    /// Not said to be written, and written.
    pub false_negatives: u64,
    /// Sum of the squared errors, each in units of 2^-16.
    pub brier_sum: u64,
    /// Calibration.
    pub buckets: [Bucket; BUCKETS],
}

impl Accounting {
    /// Nothing counted yet.
    pub const ZERO: Self = Self {
        hits: 0,
        misses: 0,
        wasted: 0,
        stale: 0,
        predictions: 0,
        true_positives: 0,
        false_positives: 0,
        false_negatives: 0,
        brier_sum: 0,
        buckets: [Bucket { count: 0, happened: 0, sum_prob: 0 }; BUCKETS],
    };

    /// Judges a prediction; `threshold` is where it says "will be written".
    pub fn record_at(&mut self, prob: Prob, threshold: Prob, happened: bool) {
        add(&mut self.predictions, 1);
        match (prob > threshold, happened) {
            (true, true) => add(&mut self.true_positives, 1),
            (true, false) => add(&mut self.false_positives, 1),
            (false, true) => add(&mut self.false_negatives, 1),
            (false, false) => {}
        }
        let error = u64::from(if happened { prob.complement().0 } else { prob.0 });
        add(&mut self.brier_sum, (error * error) >> 16);
        let index = (usize::from(prob.0) * BUCKETS) >> 16;
        if let Some(bucket) = self.buckets.get_mut(index) {
            add(&mut bucket.count, 1);
            add(&mut bucket.happened, u64::from(happened));
            add(&mut bucket.sum_prob, u64::from(prob.0));
        }
    }

    /// Judges a prediction with even odds as the threshold.
    pub fn record(&mut self, prob: Prob, happened: bool) {
        self.record_at(prob, Prob::HALF, happened);
    }

    /// Counts staged blocks that were of use.
    pub fn add_hits(&mut self, blocks: u64) {
        add(&mut self.hits, blocks);
    }

    /// Counts blocks for which no valid copy was there.
    pub fn add_misses(&mut self, blocks: u64) {
        add(&mut self.misses, blocks);
    }

    /// Counts staged blocks that were of no use.
    pub fn add_wasted(&mut self, blocks: u64) {
        add(&mut self.wasted, blocks);
    }

    /// Counts staged copies that were overwritten before T0.
    pub fn add_stale(&mut self, blocks: u64) {
        add(&mut self.stale, blocks);
    }

    /// Adds the counters of another, for totals.
    pub fn merge(&mut self, other: &Self) {
        add(&mut self.hits, other.hits);
        add(&mut self.misses, other.misses);
        add(&mut self.wasted, other.wasted);
        add(&mut self.stale, other.stale);
        add(&mut self.predictions, other.predictions);
        add(&mut self.true_positives, other.true_positives);
        add(&mut self.false_positives, other.false_positives);
        add(&mut self.false_negatives, other.false_negatives);
        add(&mut self.brier_sum, other.brier_sum);
        for (bucket, other) in self.buckets.iter_mut().zip(&other.buckets) {
            add(&mut bucket.count, other.count);
            add(&mut bucket.happened, other.happened);
            add(&mut bucket.sum_prob, other.sum_prob);
        }
    }

    /// Of the areas said to be written, how many were.
    pub const fn precision(&self) -> Prob {
        let said = self.true_positives.saturating_add(self.false_positives);
        Prob::from_ratio(self.true_positives, said)
    }

    /// Of the areas written, how many were said to be.
    pub const fn recall(&self) -> Prob {
        let written = self.true_positives.saturating_add(self.false_negatives);
        Prob::from_ratio(self.true_positives, written)
    }

    /// Of the blocks needed at T0, how many were there.
    pub const fn hit_rate(&self) -> Prob {
        Prob::from_ratio(self.hits, self.hits.saturating_add(self.misses))
    }

    /// Of the copies made ahead, how many were of no use.
    pub const fn waste_rate(&self) -> Prob {
        let useless = self.wasted.saturating_add(self.stale);
        Prob::from_ratio(useless, useless.saturating_add(self.hits))
    }

    /// Mean squared error of the probabilities: 0 is perfect, a quarter is a coin.
    pub const fn brier(&self) -> Prob {
        match self.brier_sum.checked_div(self.predictions) {
            Some(mean) if mean < 65535 => Prob(mean as u16),
            Some(_) => Prob::ONE,
            None => Prob::ZERO,
        }
    }

    /// Mean distance between what was predicted and what came true, over the buckets.
    pub fn calibration_error(&self) -> Prob {
        let weighted = self.buckets.iter().fold(0u64, |sum, b| {
            let distance = b.predicted().0.abs_diff(b.observed().0);
            sum.saturating_add(b.count.saturating_mul(u64::from(distance)))
        });
        Prob(weighted.checked_div(self.predictions).unwrap_or(0).min(65535) as u16)
    }
}

fn add(counter: &mut u64, n: u64) {
    *counter = counter.saturating_add(n);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_and_a_wrong_predictor() {
        let mut good = Accounting::ZERO;
        let mut bad = Accounting::default();
        for i in 0..100 {
            let happens = i % 4 == 0;
            let p = if happens { Prob::ONE } else { Prob::ZERO };
            good.record(p, happens);
            bad.record(p, !happens);
        }
        assert_eq!((good.precision(), good.recall()), (Prob::ONE, Prob::ONE));
        assert_eq!((good.brier(), good.calibration_error()), (Prob::ZERO, Prob::ZERO));
        assert_eq!((bad.precision(), bad.recall()), (Prob::ZERO, Prob::ZERO));
        assert!(bad.brier().permille() >= 999 && bad.calibration_error().permille() >= 999);
        assert_eq!(good.predictions, 100);
        assert_eq!(good.buckets[0].count, 75);
        assert_eq!(good.buckets[9].happened, 25);
    }

    #[test]
    fn a_calibrated_coin() {
        let mut a = Accounting::ZERO;
        for i in 0..1000 {
            a.record_at(Prob::from_permille(250), Prob::from_permille(200), i % 4 == 0);
        }
        assert!(a.calibration_error().permille() <= 1);
        assert!(a.brier().permille().abs_diff(187) <= 1);
        assert_eq!(a.precision().permille(), 250);
        assert_eq!(a.recall(), Prob::ONE);
    }

    #[test]
    fn copies() {
        let mut a = Accounting::ZERO;
        a.add_hits(75);
        a.add_misses(25);
        a.add_wasted(20);
        a.add_stale(5);
        assert_eq!((a.hit_rate().permille(), a.waste_rate().permille()), (750, 250));
        let mut sum = a;
        sum.merge(&a);
        assert_eq!((sum.hits, sum.stale), (150, 10));
        sum.add_hits(u64::MAX);
        assert_eq!(sum.hits, u64::MAX);
    }

    #[test]
    fn nothing_recorded_divides_by_nothing() {
        let a = Accounting::ZERO;
        for p in [a.precision(), a.recall(), a.hit_rate(), a.waste_rate(), a.brier()] {
            assert_eq!(p, Prob::ZERO);
        }
        assert_eq!(a.calibration_error(), Prob::ZERO);
    }
}
