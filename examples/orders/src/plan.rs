//! What `produce` publishes: a pure function of its options and the seed.

use consumer::Message;

use crate::{cli::Fraction, order::OrderPlaced, stop::Stop};

/// What to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mixture {
    pub(crate) count: u64,
    pub(crate) duplicates: u64,
    pub(crate) undecodable: u64,
    pub(crate) flaky: u64,
    pub(crate) bouncing: u64,
}

/// One message of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) id: String,
    pub(crate) order_id: String,
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    Duplicate,
    Undecodable,
    Flaky,
    Bouncing,
}

impl Mixture {
    /// ⌊count × fraction⌋ of each kind.
    pub(crate) fn new(
        count: u64,
        [duplicates, undecodable, flaky, bouncing]: [Fraction; 4],
    ) -> Result<Self, Stop> {
        let of = |fraction: Fraction| fraction.of(count);
        let mixture = Self {
            count,
            duplicates: of(duplicates),
            undecodable: of(undecodable),
            flaky: of(flaky),
            bouncing: of(bouncing),
        };
        match mixture.good() {
            None => Err(Stop::usage(
                "--duplicates, --undecodable, --flaky and --bouncing exclude each other, and together they are more \
                 than 1",
            )),
            Some(0) if mixture.duplicates > 0 => {
                Err(Stop::usage("--duplicates repeats good orders, and the other fractions leave none"))
            }
            Some(_) => Ok(mixture),
        }
    }

    fn special(&self) -> [(Kind, u64); 4] {
        [
            (Kind::Duplicate, self.duplicates),
            (Kind::Undecodable, self.undecodable),
            (Kind::Flaky, self.flaky),
            (Kind::Bouncing, self.bouncing),
        ]
    }

    /// How many are none of the special kinds; `None` if there are more special ones than messages.
    fn good(&self) -> Option<u64> {
        self.special().iter().try_fold(self.count, |left, (_, count)| left.checked_sub(*count))
    }

    /// Distinct ids.
    pub(crate) fn unique(&self) -> u64 {
        self.count - self.duplicates
    }

    /// The messages in their order. The same seed and mixture give the same messages.
    pub(crate) fn messages(&self, seed: u64) -> impl Iterator<Item = Planned> + use<> {
        let mut random = SplitMix64(seed);
        let kinds = self.kinds(&mut random);
        let mut good: Vec<u32> = Vec::new();
        let mut unique = 0_u32;
        kinds.into_iter().map(move |kind| {
            if kind == Kind::Duplicate {
                let nth = good[random.below(good.len() as u64) as usize];
                return planned(seed, nth, Kind::Good);
            }
            unique += 1;
            if kind == Kind::Good {
                good.push(unique);
            }
            planned(seed, unique, kind)
        })
    }

    fn kinds(&self, random: &mut SplitMix64) -> Vec<Kind> {
        let mut kinds = Vec::with_capacity(self.count as usize);
        for (kind, count) in self.special() {
            kinds.extend(std::iter::repeat_n(kind, count as usize));
        }
        kinds.resize(self.count as usize, Kind::Good);
        for last in (1..kinds.len()).rev() {
            kinds.swap(last, random.below(last as u64 + 1) as usize);
        }
        // A duplicate needs a good order before it.
        let first = |wanted| kinds.iter().position(|kind| *kind == wanted);
        if let (Some(duplicate), Some(good)) = (first(Kind::Duplicate), first(Kind::Good))
            && duplicate < good
        {
            kinds.swap(duplicate, good);
        }
        kinds
    }
}

impl Planned {
    /// A single order.
    pub(crate) fn order(order_id: &str, email: &str) -> Self {
        let order = OrderPlaced { order_id: order_id.to_owned(), email: email.to_owned(), total: None };
        Self { id: format!("id-of-{order_id}"), order_id: order_id.to_owned(), payload: order.to_json() }
    }

    /// Whether it is an order whose address works, sooner or later.
    pub(crate) fn can_be_mailed(&self) -> bool {
        serde_json::from_slice::<OrderPlaced>(&self.payload).is_ok_and(|order| {
            !order.email.ends_with("@bounces.example") && !order.email.ends_with("@down.example")
        })
    }

    pub(crate) fn message(self) -> Message {
        Message::builder()
            .payload(self.payload)
            .key(self.order_id)
            .id(self.id)
            .header("content-type", "application/json")
            .build()
    }
}

/// The message number `nth` of a seed; depends on nothing else.
fn planned(seed: u64, nth: u32, kind: Kind) -> Planned {
    const NAMES: [&str; 8] = ["ann", "bob", "cem", "dag", "eva", "fay", "gus", "hal"];
    let mut random = SplitMix64(SplitMix64(seed).next() ^ u64::from(nth));
    let bits = u128::from(random.next()) << 64 | u128::from(random.next());
    let id = uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().to_string();
    let order_id = format!("o-{nth}");
    let domain = match kind {
        Kind::Flaky => "flaky.example",
        Kind::Bouncing => "bounces.example",
        Kind::Good | Kind::Duplicate | Kind::Undecodable => "example.com",
    };
    let name = NAMES[random.below(NAMES.len() as u64) as usize];
    let total = i64::try_from(500 + random.below(20_000)).ok();
    let order = OrderPlaced { order_id: order_id.clone(), email: format!("{name}@{domain}"), total };
    let payload = match kind {
        Kind::Undecodable => undecodable(&order_id, random.below(3)),
        _ => order.to_json(),
    };
    Planned { id, order_id, payload }
}

/// What a publisher with a bug sends.
fn undecodable(order_id: &str, way: u64) -> Vec<u8> {
    match way {
        0 => format!(r#"{{"order_id":"{order_id}","email":"#).into_bytes(),
        1 => format!(r#"{{"order_id":"{order_id}","total":1999}}"#).into_bytes(),
        _ => format!("order_id={order_id}&email=ann@example.com").into_bytes(),
    }
}

/// A small generator of which every value is the same everywhere and for ever.
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fraction;
    use std::collections::{HashMap, HashSet};

    fn mixture(count: u64, fractions: [&str; 4]) -> Result<Mixture, Stop> {
        Mixture::new(count, fractions.map(|text| fraction(text).unwrap()))
    }

    fn email(planned: &Planned) -> Option<String> {
        serde_json::from_slice::<OrderPlaced>(&planned.payload).ok().map(|order| order.email)
    }

    #[test]
    fn each_kind_has_its_number_and_duplicates_repeat_earlier_good_orders() {
        for seed in 0..50 {
            let mixture = mixture(101, ["0.2", "0.1", "0.05", "0.03"]).unwrap();
            let messages: Vec<Planned> = mixture.messages(seed).collect();
            assert_eq!(messages.len(), 101);
            let (mut seen, mut duplicates) = (HashMap::new(), 0);
            for message in &messages {
                if let Some(first) = seen.insert(message.id.clone(), message) {
                    assert_eq!(first, message);
                    assert!(email(message).unwrap().ends_with("@example.com"));
                    duplicates += 1;
                }
            }
            assert_eq!((duplicates, seen.len() as u64), (20, mixture.unique()));
            let count = |with: fn(&Option<String>) -> bool| seen.values().filter(|m| with(&email(m))).count();
            assert_eq!(count(|email| email.is_none()), 10);
            assert_eq!(count(|email| email.as_ref().is_some_and(|e| e.ends_with("@flaky.example"))), 5);
            assert_eq!(count(|email| email.as_ref().is_some_and(|e| e.ends_with("@bounces.example"))), 3);
            let orders: HashSet<_> = seen.values().map(|message| &message.order_id).collect();
            assert_eq!(orders.len(), seen.len());
        }
    }

    #[test]
    fn the_seed_decides_everything() {
        let mixture = mixture(50, ["0.2", "0.1", "0.1", "0.1"]).unwrap();
        let of = |seed| mixture.messages(seed).collect::<Vec<_>>();
        assert_eq!(of(7), of(7));
        let ids = |seed| of(seed).into_iter().map(|m| m.id).collect::<HashSet<_>>();
        assert!(ids(7).is_disjoint(&ids(8)));
    }

    #[test]
    fn ids_stay_the_same_from_version_to_version() {
        let mixture = mixture(1, ["0", "0", "0", "0"]).unwrap();
        let first = mixture.messages(1).next().unwrap();
        assert_eq!(first.order_id, "o-1");
        assert_eq!(first.id, "e9fd6049-d65a-421e-851e-9aa03802868b");
    }

    #[test]
    fn what_cannot_be_published_is_refused() {
        assert!(matches!(mixture(10, ["0.5", "0.3", "0.2", "0.1"]), Err(Stop::Usage(_))));
        assert!(matches!(mixture(10, ["0.5", "0.5", "0", "0"]), Err(Stop::Usage(_))));
        assert!(mixture(10, ["0", "0.5", "0.2", "0.3"]).is_ok());
        assert!(mixture(0, ["1", "0", "0", "0"]).is_ok());
        assert!(mixture(2, ["0.5", "0", "0", "0"]).unwrap().messages(3).count() == 2);
    }
}
