//! Which slots of a cache are taken.

use std::ops::Range;

/// The slots of a cache, each used by any number of sequences: a common prefix takes its slots once.
pub(crate) struct CacheSlots {
    /// The number of sequences that use each slot.
    users: Vec<u32>,
    free: usize,
}

impl CacheSlots {
    /// Slots that are all free.
    pub(crate) fn new(slots: usize) -> Self {
        Self { users: vec![0; slots], free: slots }
    }

    /// Number of slots.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    /// Number of slots that no sequence uses.
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    /// Adds free slots after the others.
    pub(crate) fn extend(&mut self, more: usize) {
        self.users.resize(self.users.len() + more, 0);
        self.free += more;
    }

    /// Takes `count` free slots: the first run that is long enough, else the first free ones, in several runs. None if
    /// there are fewer.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<Range<usize>>> {
        if count > self.free {
            return None;
        }
        let runs = self.free_runs();
        let taken = match runs.iter().find(|run| run.len() >= count) {
            Some(run) => first(std::slice::from_ref(run), count),
            None => first(&runs, count),
        };
        self.share(&taken);
        Some(taken)
    }

    fn free_runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (slot, _) in self.users.iter().enumerate().filter(|(_, users)| **users == 0) {
            match runs.last_mut() {
                Some(run) if run.end == slot => run.end += 1,
                _ => runs.push(slot..slot + 1),
            }
        }
        runs
    }

    /// Counts one more sequence that uses these slots.
    pub(crate) fn share(&mut self, ranges: &[Range<usize>]) {
        for slot in ranges.iter().cloned().flatten() {
            self.free -= usize::from(self.users[slot] == 0);
            self.users[slot] += 1;
        }
    }

    /// Counts one less.
    pub(crate) fn release(&mut self, ranges: &[Range<usize>]) {
        for slot in ranges.iter().cloned().flatten() {
            self.users[slot] -= 1;
            self.free += usize::from(self.users[slot] == 0);
        }
    }

    /// Whether another sequence uses any of these slots of a sequence.
    pub(crate) fn are_shared(&self, ranges: &[Range<usize>]) -> bool {
        ranges.iter().cloned().flatten().any(|slot| self.users[slot] > 1)
    }
}

/// The first `count` slots of some runs.
pub(crate) fn first(runs: &[Range<usize>], count: usize) -> Vec<Range<usize>> {
    let mut left = count;
    let part = |run: &Range<usize>| {
        let taken = left.min(run.len());
        left -= taken;
        run.start..run.start + taken
    };
    runs.iter().map(part).filter(|run| !run.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_slots_are_taken_again_in_one_run_or_in_several() {
        let mut slots = CacheSlots::new(10);
        let of = |slots: &mut CacheSlots, count| slots.take(count).unwrap_or_default();
        let one = |range: Range<usize>| vec![range];
        let (a, b, c) = (of(&mut slots, 3), of(&mut slots, 2), of(&mut slots, 4));
        assert_eq!((&a, &b, &c), (&one(0..3), &one(3..5), &one(5..9)));
        assert_eq!((slots.take(2), slots.free()), (None, 1));
        slots.release(&a);
        slots.release(&c);
        assert_eq!(of(&mut slots, 5), one(5..10));
        assert_eq!(of(&mut slots, 0), Vec::<Range<usize>>::new());
        slots.release(&one(6..7));
        assert_eq!(of(&mut slots, 4), [0..3, 6..7]);
        slots.extend(2);
        assert_eq!((of(&mut slots, 2), slots.free(), slots.len()), (one(10..12), 0, 12));
    }

    #[test]
    fn a_shared_slot_is_free_when_the_last_sequence_releases_it() {
        let mut slots = CacheSlots::new(4);
        let whole = slots.take(4).unwrap_or_default();
        let prefix = first(&whole, 3);
        slots.share(&prefix);
        assert!(slots.are_shared(&whole) && !slots.are_shared(std::slice::from_ref(&(3..4))));
        slots.release(&whole);
        assert_eq!((slots.free(), slots.are_shared(&prefix)), (1, false));
        slots.release(&prefix);
        assert_eq!(slots.free(), 4);
    }
}
