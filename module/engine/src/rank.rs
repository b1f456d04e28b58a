// SPDX-License-Identifier: GPL-2.0-only

//! Sorting candidates by what they are worth.
//!
//! The sorts of `core` may panic when an order is not total, and keep a buffer on the stack; neither
//! has a place in the kernel. Heapsort (Williams, CACM 7(6), 1964): in place, O(n log n), no panic.

/// Sorts by key, the largest first. Elements with the same key may change places.
pub fn sort_descending<T: Copy>(items: &mut [T], key: impl Fn(&T) -> u32) {
    let n = items.len();
    for root in (0..n / 2).rev() {
        sift(items, root, n, &key);
    }
    for end in (1..n).rev() {
        items.swap(0, end);
        sift(items, 0, end, &key);
    }
}

/// Restores the heap (smallest key at the root) below `root`, in the first `end` elements.
fn sift<T: Copy>(items: &mut [T], mut root: usize, end: usize, key: &impl Fn(&T) -> u32) {
    let at = |items: &[T], i: usize| items.get(i).map_or(u32::MAX, key);
    loop {
        let left = root.saturating_mul(2).saturating_add(1);
        if left >= end {
            return;
        }
        let right = left.saturating_add(1);
        let least = if right < end && at(items, right) < at(items, left) { right } else { left };
        if at(items, root) <= at(items, least) {
            return;
        }
        // Both are below `end`, and that is at most the length.
        if root < items.len() && least < items.len() {
            items.swap(root, least);
        }
        root = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_like_the_library() {
        let mut seed = 1u32;
        for n in 0..200 {
            let mut items: Vec<u32> = (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 16) % 50
                })
                .collect();
            let mut expected = items.clone();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            sort_descending(&mut items, |&x| x);
            assert_eq!(items, expected);
        }
    }
}
