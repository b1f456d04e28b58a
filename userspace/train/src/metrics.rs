// SPDX-License-Identifier: GPL-2.0-only

//! How good a ranking is.

/// Area under the ROC curve and average precision of a ranking; ties count as what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// Probability that a written area is ranked above one that is not.
    pub auc: f64,
    /// Mean precision over the recall.
    pub ap: f64,
}

/// Ranks by score, larger first. `None` if all samples are of one kind.
pub fn quality<T: PartialOrd + Copy>(samples: impl Iterator<Item = (T, bool)>) -> Option<Quality> {
    let mut samples: Vec<_> = samples.collect();
    samples.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal));
    let positives = samples.iter().filter(|s| s.1).count() as f64;
    let negatives = samples.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let (mut auc, mut ap) = (0.0, 0.0);
    let (mut above_pos, mut above_neg) = (0.0, 0.0);
    for tied in samples.chunk_by(|a, b| a.0 == b.0) {
        let pos = tied.iter().filter(|s| s.1).count() as f64;
        let neg = tied.len() as f64 - pos;
        auc += neg * (above_pos + pos / 2.0);
        above_pos += pos;
        above_neg += neg;
        ap += pos * above_pos / (above_pos + above_neg);
    }
    Some(Quality { auc: auc / (positives * negatives), ap: ap / positives })
}

/// Mean of several; `None` of none.
pub fn mean(of: &[Quality]) -> Option<Quality> {
    if of.is_empty() {
        return None;
    }
    let n = of.len() as f64;
    Some(Quality {
        auc: of.iter().map(|q| q.auc).sum::<f64>() / n,
        ap: of.iter().map(|q| q.ap).sum::<f64>() / n,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_rankings() {
        let of = |s: &[(u32, bool)]| quality(s.iter().copied());
        let best = of(&[(4, true), (3, true), (2, false), (1, false)]).unwrap();
        assert_eq!((best.auc, best.ap), (1.0, 1.0));
        let worst = of(&[(1, true), (2, false)]).unwrap();
        assert_eq!((worst.auc, worst.ap), (0.0, 0.5));
        let tied = of(&[(1, true), (1, false), (1, false), (1, false)]).unwrap();
        assert_eq!((tied.auc, tied.ap), (0.5, 0.25));
        let mixed = of(&[(4, true), (3, false), (2, true), (1, false)]).unwrap();
        assert_eq!(mixed.auc, 0.75);
        assert!((mixed.ap - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!(of(&[(1, true)]), None);
        assert_eq!(mean(&[]), None);
    }
}
