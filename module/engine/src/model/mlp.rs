// SPDX-License-Identifier: GPL-2.0-only

//! Family `mlp`: layers of rectified units, the last one linear.

use super::blob::Layout;
use super::{dense, Values, WIDTH_MAX};

/// The logit in Q8, not yet clamped. `values` holds the normalised features and is overwritten.
pub(super) fn logit(blob: &[u8], layout: &Layout, values: &mut Values) -> i64 {
    let mut layers = layout.layers().peekable();
    while let Some(layer) = layers.next() {
        if layers.peek().is_none() {
            return dense::outputs(blob, layer, values).next().unwrap_or(0);
        }
        let mut hidden = [0; WIDTH_MAX];
        for (unit, output) in hidden.iter_mut().zip(dense::outputs(blob, layer, values)) {
            *unit = dense::activate(output);
        }
        *values = hidden;
    }
    0
}
