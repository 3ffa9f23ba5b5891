//! How work is grouped, so that one forward holds at most so many tokens.

/// Groups the indices of `lengths` so that each group's lengths sum to at most `budget`.
///
/// The longest come first: what does not fit into memory fails at once rather than after an hour, and estimates of
/// the time left err on the safe side. What is longer than the budget is a group of its own. Nothing is padded, so
/// that a group may mix lengths at no cost.
pub(crate) fn token_batches(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for index in order {
        match groups.last_mut() {
            Some(group) if lengths[index] <= room => group.push(index),
            _ => {
                room = budget.max(lengths[index]);
                groups.push(vec![index]);
            }
        }
        room -= lengths[index];
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_to_the_budget_and_leave_nothing_out() {
        let groups = token_batches(&[3, 9, 1, 4, 12, 4], 10);
        assert_eq!(groups, [vec![4], vec![1], vec![3, 5], vec![0, 2]]);
        assert_eq!(token_batches(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(token_batches(&[0, 0], 0), [vec![0, 1]]);
    }
}
