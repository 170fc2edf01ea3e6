//! Which member of a group should have which partition.

/// Shares partitions among members: as evenly as possible, and leaving each where it is if that is even enough.
///
/// `owners` has the present owner of each partition; the answer has the one it should have.
pub(super) fn share(owners: &[Option<u64>], members: &[u64]) -> Vec<Option<u64>> {
    if members.is_empty() {
        return vec![None; owners.len()];
    }
    let base = owners.len() / members.len();
    let mut extras = owners.len() % members.len();
    let mut counts = vec![0; members.len()];
    let mut shared = Vec::with_capacity(owners.len());
    for owner in owners {
        let kept = owner.and_then(|owner| members.iter().position(|member| *member == owner));
        let kept = kept.filter(|index| {
            let extra = counts[*index] == base && extras > 0;
            extras -= usize::from(extra);
            counts[*index] < base || extra
        });
        if let Some(index) = kept {
            counts[index] += 1;
        }
        shared.push(kept.map(|index| members[index]));
    }
    for slot in shared.iter_mut().filter(|slot| slot.is_none()) {
        let least = (0..members.len()).min_by_key(|index| counts[*index]);
        if let Some(index) = least {
            counts[index] += 1;
            *slot = Some(members[index]);
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_shared_evenly_and_move_no_more_than_needed() {
        let all_one = vec![Some(1); 5];
        assert_eq!(share(&all_one, &[1, 2]), [Some(1), Some(1), Some(1), Some(2), Some(2)]);
        let two = share(&all_one, &[1, 2]);
        let three = share(&two, &[1, 2, 3]);
        assert_eq!(three, [Some(1), Some(1), Some(3), Some(2), Some(2)]);
        assert_eq!(share(&three, &[2, 3]), [Some(3), Some(2), Some(3), Some(2), Some(2)]);
        assert_eq!(share(&three, &[]), [None; 5]);
    }

    #[test]
    fn more_members_than_partitions_leaves_some_without() {
        assert_eq!(share(&[Some(7), None], &[5, 6, 7]), [Some(7), Some(5)]);
    }
}
