// SPDX-License-Identifier: GPL-2.0-only

//! Family `linear`: logistic regression, one layer of one output.

use super::blob::Layout;
use super::{dense, Values};

/// The logit in Q8, not yet clamped.
pub(super) fn logit(blob: &[u8], layout: &Layout, values: &Values) -> i64 {
    layout.layers().next().and_then(|l| dense::outputs(blob, l, values).next()).unwrap_or(0)
}
