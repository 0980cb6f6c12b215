//! What many values are like.

/// Order statistics of values, in their unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentiles {
    /// How many values there are, at least 1.
    pub count: usize,
    /// The least.
    pub min: f64,
    /// The middle one; of two middle ones the mean.
    pub median: f64,
    /// The least value that 90 of 100 do not exceed.
    pub p90: f64,
    /// The least value that 99 of 100 do not exceed: with fewer than 100 values the greatest.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Percentiles {
    /// Those of these values; none without a value.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        // The nearest rank: counted from 1, rounded up.
        let of_hundred = |p: usize| {
            let rank = (count * p).div_ceil(100).max(1);
            values.get(rank - 1).copied()
        };
        let lower = *values.get(count.checked_sub(1)? / 2)?;
        let upper = *values.get(count / 2)?;
        Some(Self {
            count,
            min: *values.first()?,
            median: f64::midpoint(lower, upper),
            p90: of_hundred(90)?,
            p99: of_hundred(99)?,
            max: *values.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest_ones() {
        let all = Percentiles::of((1..=200).rev().map(f64::from)).expect("values");
        assert_eq!((all.count, all.min, all.max), (200, 1.0, 200.0));
        assert_eq!((all.median, all.p90, all.p99), (100.5, 180.0, 198.0));
    }

    #[test]
    fn few_values_have_percentiles_too() {
        assert_eq!(Percentiles::of([]), None);
        let one = Percentiles::of([7.0]).expect("a value");
        assert_eq!(
            (one.min, one.median, one.p90, one.p99, one.max),
            (7.0, 7.0, 7.0, 7.0, 7.0)
        );
        let three = Percentiles::of([3.0, -1.0, 2.0]).expect("values");
        assert_eq!((three.median, three.p90, three.p99), (2.0, 3.0, 3.0));
    }
}
