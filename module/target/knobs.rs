// SPDX-License-Identifier: GPL-2.0-only

//! The knobs of a device, as they are set now.

use core::sync::atomic::{AtomicU64, Ordering};
use presnap_engine::fixed::Prob;
use presnap_engine::freeze::FreezeBudget;
use presnap_engine::knob::{Knob, KNOBS, KNOB_COUNT};
use presnap_engine::policy::Mirror;
use presnap_engine::predictor::PredictorKind;
use presnap_engine::table::Scope;

/// Values of [`KNOBS`]; each may change at any time.
pub(crate) struct Knobs([AtomicU64; KNOB_COUNT]);

impl Knobs {
    /// The defaults.
    pub(crate) fn new() -> Self {
        Self(KNOBS.map(|spec| AtomicU64::new(spec.default)))
    }

    /// The value of knob number `index`.
    pub(crate) fn at(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |value| value.load(Ordering::Relaxed))
    }

    /// Sets knob number `index`.
    pub(crate) fn set_at(&self, index: usize, value: u64) {
        if let Some(knob) = self.0.get(index) {
            knob.store(value, Ordering::Relaxed);
        }
    }

    /// The value of a knob.
    pub(crate) fn get(&self, knob: Knob) -> u64 {
        self.at(knob as usize)
    }

    /// The value in milliseconds, as nanoseconds.
    pub(crate) fn ms_as_ns(&self, knob: Knob) -> u64 {
        self.get(knob).saturating_mul(1_000_000)
    }

    pub(crate) fn predictor(&self) -> PredictorKind {
        PredictorKind::from_wire(self.get(Knob::Predictor) as u8).unwrap_or(PredictorKind::Off)
    }

    pub(crate) fn scope(&self) -> Scope {
        if self.get(Knob::Scope) == 1 {
            Scope::Image
        } else {
            Scope::Delta
        }
    }

    pub(crate) fn set_scope(&self, scope: Scope) {
        self.set_at(Knob::Scope as usize, scope as u64);
    }

    pub(crate) fn probability(&self, knob: Knob) -> Prob {
        Prob::from_permille(self.get(knob).min(1000) as u32)
    }

    pub(crate) fn freeze_budget(&self) -> FreezeBudget {
        match self.get(Knob::FreezeBudgetUs) {
            u64::MAX => FreezeBudget::Unlimited,
            us => FreezeBudget::Bounded(us.saturating_mul(1000)),
        }
    }

    pub(crate) fn mirror(&self) -> Mirror {
        match self.get(Knob::Mirror) {
            1 => Mirror::Off,
            2 => Mirror::Force,
            _ => Mirror::Auto,
        }
    }
}
