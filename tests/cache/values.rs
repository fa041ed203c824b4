//! `get_or_fill`: values that are dear to make.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::{join, join_all};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::{advance, sleep};
use tower_keep::{
    MemoryStorage, Storage,
    cache::{CacheHandle, FillError, Keep},
};

use crate::world::{Dice, Distant, count};

const MINUTE: Duration = Duration::from_secs(60);

fn memory() -> CacheHandle {
    CacheHandle::new(MemoryStorage::new())
}

fn keep() -> Keep {
    Keep::for_ttl(MINUTE)
}

#[derive(Debug, PartialEq)]
struct Refused(u32);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused for the {}th time", self.0)
    }
}

impl Error for Refused {}

async fn slowly<T>(value: T) -> Result<T, Refused> {
    sleep(Duration::from_millis(100)).await;
    Ok(value)
}

async fn at_once<T>(value: T) -> Result<T, Refused> {
    Ok(value)
}

/// What a caller gets whose closure gives this at once.
async fn get<T>(cache: &CacheHandle, key: &str, keep: Keep, value: T) -> T
where
    T: Serialize + DeserializeOwned + Send + 'static,
{
    cache.get_or_fill(key.to_owned(), keep, async || at_once(value).await).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn all_who_ask_at_once_get_the_value_of_one_call() {
    let (cache, calls) = (memory(), Arc::new(AtomicUsize::new(0)));
    let callers = (0..1_000).map(|_| {
        let calls = Arc::clone(&calls);
        let fill = async move || slowly(calls.fetch_add(1, SeqCst)).await;
        cache.get_or_fill("a", keep(), fill)
    });
    for value in join_all(callers).await {
        assert_eq!(value.unwrap(), 0);
    }
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_goes_to_whose_it_is_and_one_successor_takes_over() {
    let (cache, calls) = (memory(), Arc::new(AtomicU64::new(0)));
    let callers = (0..100).map(|_| {
        let calls = Arc::clone(&calls);
        cache.get_or_fill("a", keep(), async move || {
            let call = calls.fetch_add(1, SeqCst);
            sleep(Duration::from_millis(100)).await;
            if call == 0 { Err(Refused(1)) } else { Ok(call) }
        })
    });
    let results = join_all(callers).await;
    let errors = results.iter().filter(|result| result.is_err()).count();
    assert!(matches!(&results[0], Err(FillError::Fill(Refused(1)))));
    assert_eq!(errors, 1);
    assert!(results[1..].iter().all(|result| *result.as_ref().unwrap() == 1));
    assert_eq!(calls.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_panic_goes_to_whose_it_is_and_one_successor_takes_over() {
    let cache = memory();
    let bad = cache.get_or_fill("a", keep(), async || {
        sleep(Duration::from_millis(100)).await;
        if true {
            panic!("on purpose");
        }
        at_once(0).await
    });
    let good = cache.get_or_fill("a", keep(), async || at_once(7).await);
    let (bad, good) = join(bad, good).await;
    assert!(matches!(bad, Err(FillError::Panicked)));
    assert_eq!(good.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_leaves_his_closure_to_the_others() {
    let cache = memory();
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_fill("a", keep(), async || slowly(1).await).await }
    });
    sleep(Duration::from_millis(50)).await;
    first.abort();
    let second = cache.get_or_fill("a", keep(), async || at_once(2).await);
    assert_eq!(second.await.unwrap(), 1);
    // Also if nobody waits.
    let gone = cache.get_or_fill("b", keep(), async || slowly(3).await);
    assert!(tokio::time::timeout(Duration::from_millis(10), gone).await.is_err());
    sleep(Duration::from_millis(200)).await;
    assert_eq!(get(&cache, "b", keep(), 4).await, 3);
}

#[tokio::test]
async fn what_cannot_be_read_as_the_type_is_made_anew() {
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Old {
        name: String,
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct New {
        name: String,
        age: u8,
    }
    let cache = memory();
    get(&cache, "a", keep(), Old { name: "Ada".to_owned() }).await;
    let new = || New { name: "Ada".to_owned(), age: 36 };
    assert_eq!(get(&cache, "a", keep(), new()).await, new());
    // And a field more than is wanted is no harm.
    let old = get(&cache, "a", keep(), Old { name: "nobody".to_owned() }).await;
    assert_eq!(old.name, "Ada");
    // A waiter of another type makes his own.
    let number = cache.get_or_fill("b", keep(), async || slowly(1_u32).await);
    let text = cache.get_or_fill("b", keep(), async || at_once("one".to_owned()).await);
    let (number, text) = join(number, text).await;
    assert_eq!((number.unwrap(), text.unwrap()), (1, "one".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_given_while_it_is_renewed() {
    let cache = memory();
    let keep = keep().with_stale_while_revalidate(MINUTE);
    get(&cache, "a", keep.clone(), 1).await;
    advance(MINUTE + Duration::from_secs(1)).await;
    let renews = cache.get_or_fill("a", keep.clone(), async || slowly(2).await);
    assert_eq!(renews.await.unwrap(), 1);
    assert_eq!(get(&cache, "a", keep.clone(), 3).await, 1, "not renewed yet");
    sleep(Duration::from_millis(200)).await;
    assert_eq!(get(&cache, "a", keep.clone(), 4).await, 2);
    advance(MINUTE * 2 + Duration::from_secs(1)).await;
    assert_eq!(get(&cache, "a", keep, 5).await, 5, "beyond the window");
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_given_instead_of_an_error() {
    let cache = memory();
    let keep = keep().with_stale_if_error(MINUTE).with_tags(["a"]);
    let fails = async || {
        cache.get_or_fill("a", keep.clone(), async || Err::<i32, _>(Refused(1))).await.ok()
    };
    get(&cache, "a", keep.clone(), 1).await;
    assert_eq!(fails().await, Some(1), "fresh");
    advance(MINUTE + Duration::from_secs(1)).await;
    assert_eq!(fails().await, Some(1), "stale");
    cache.invalidate(["a"]).await.unwrap();
    assert_eq!(fails().await, None, "purged");
}

#[tokio::test(start_paused = true)]
async fn a_soft_purge_leaves_the_value_to_be_given_once_more() {
    let cache = memory();
    let keep = keep().with_tags(["a"]).with_stale_while_revalidate(MINUTE);
    get(&cache, "a", keep.clone(), 1).await;
    cache.invalidate_softly(["a"]).await.unwrap();
    assert_eq!(get(&cache, "a", keep.clone(), 2).await, 1);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(get(&cache, "a", keep, 3).await, 2);
}

#[tokio::test]
async fn a_purge_ends_the_values_that_it_names_and_no_others() {
    let cache = memory();
    let tagged = |tag: &str| keep().with_tags([tag.to_owned(), "all".to_owned()]);
    for (key, tag) in [("a", "x"), ("b", "y")] {
        get(&cache, key, tagged(tag), 1).await;
    }
    cache.invalidate(["x"]).await.unwrap();
    assert_eq!(get(&cache, "a", tagged("x"), 2).await, 2);
    assert_eq!(get(&cache, "b", tagged("y"), 2).await, 1);
    cache.invalidate_key("b").await.unwrap();
    assert_eq!(get(&cache, "a", tagged("x"), 3).await, 2);
    assert_eq!(get(&cache, "b", tagged("y"), 3).await, 3);
    // A tag is not a key, nor a path.
    cache.invalidate(["a", "b"]).await.unwrap();
    cache.invalidate_uri("/a").await.unwrap();
    assert_eq!(get(&cache, "a", tagged("x"), 4).await, 2);
    cache.invalidate(["all"]).await.unwrap();
    assert_eq!(get(&cache, "a", tagged("x"), 5).await, 5);
    cache.clear().await.unwrap();
    assert_eq!(get(&cache, "a", tagged("x"), 6).await, 6);
    cache.invalidate(Vec::<String>::new()).await.unwrap();
    assert_eq!(get(&cache, "a", tagged("x"), 7).await, 6);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_invalidated_while_it_is_made_is_given_to_nobody_who_asks_later() {
    for how in 0..4 {
        let cache = memory();
        let keep = keep().with_tags(["a"]).with_stale_while_revalidate(MINUTE);
        let first = tokio::spawn({
            let (cache, keep) = (cache.clone(), keep.clone());
            async move { cache.get_or_fill("a", keep, async || slowly(1).await).await.unwrap() }
        });
        sleep(Duration::from_millis(50)).await;
        match how {
            0 => cache.invalidate(["a"]).await.unwrap(),
            1 => cache.invalidate_key("a").await.unwrap(),
            2 => cache.clear().await.unwrap(),
            _ => cache.invalidate(["other", "a"]).await.unwrap(),
        }
        // While the first is under way, and after it.
        assert_eq!(get(&cache, "a", keep.clone(), 2).await, 2);
        assert_eq!(first.await.unwrap(), 1);
        assert_eq!(get(&cache, "a", keep, 3).await, 2);
    }
}

/// Refuses to be written.
#[derive(Debug, PartialEq, Deserialize)]
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_is_given_and_not_stored() {
    let (cache, calls) = (memory(), Arc::new(AtomicUsize::new(0)));
    for round in 1..=3 {
        let count = Arc::clone(&calls);
        let fill = async move || {
            count.fetch_add(1, SeqCst);
            slowly(Unwritable).await
        };
        assert_eq!(cache.get_or_fill("a", keep(), fill).await.unwrap(), Unwritable);
        assert_eq!(calls.load(SeqCst), round);
    }
    // Nor is one with tags that no purge could be trusted to reach.
    let keep = keep().with_tags((0..129).map(|n| n.to_string()));
    assert_eq!(get(&cache, "b", keep.clone(), 1).await, 1);
    assert_eq!(get(&cache, "b", keep, 2).await, 2);
}

#[tokio::test]
async fn a_very_large_value_comes_back_or_is_made_again() {
    let cache = CacheHandle::new(MemoryStorage::builder().max_bytes(256 << 20).build());
    let large = "x".repeat(20 << 20);
    assert_eq!(get(&cache, "a", keep(), large.clone()).await, large);
    assert_eq!(get(&cache, "a", keep(), String::new()).await.len(), large.len());
    // One that finds no room is given all the same.
    let small = CacheHandle::new(MemoryStorage::builder().max_bytes(4 << 20).build());
    assert_eq!(get(&small, "a", keep(), large.clone()).await.len(), large.len());
    assert_eq!(get(&small, "a", keep(), String::new()).await.len(), 0);
}

#[tokio::test]
async fn values_come_back_as_they_were() {
    #[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
    enum Shape {
        Point,
        Circle(f64),
        Box { width: u64, name: Option<String> },
    }
    #[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
    struct Everything {
        shapes: Vec<Shape>,
        by_number: BTreeMap<i64, String>,
        by_pair: HashMap<(u8, u8), bool>,
        bytes: Vec<u8>,
        nothing: Option<u8>,
        nested: Option<Option<u8>>,
        unit: (),
        letter: char,
        extremes: (u64, i64, u128, f32),
        time: Duration,
        result: Result<u8, String>,
    }
    let value = Everything {
        shapes: vec![
            Shape::Point,
            Shape::Circle(-0.0),
            Shape::Box { width: u64::MAX, name: Some(String::new()) },
            Shape::Box { width: 0, name: None },
        ],
        by_number: [(i64::MIN, "least".to_owned()), (7, "Ä€\0".to_owned())].into(),
        by_pair: [((1, 2), true)].into(),
        bytes: (0..=255).collect(),
        nothing: None,
        nested: Some(Some(1)),
        unit: (),
        letter: '\u{10ffff}',
        extremes: (u64::MAX, i64::MIN, u128::MAX, f32::INFINITY),
        time: Duration::new(u64::MAX, 999_999_999),
        result: Err("no".to_owned()),
    };
    let cache = memory();
    for _ in 0..2 {
        assert_eq!(get(&cache, "a", keep(), value.clone()).await, value);
    }
    let nan: Vec<f64> = get(&cache, "b", keep(), vec![f64::NAN, f64::NEG_INFINITY]).await;
    let again: Vec<f64> = get(&cache, "b", keep(), Vec::new()).await;
    assert_eq!(nan[0].to_bits(), again[0].to_bits());
    assert_eq!(nan[1], again[1]);
    // What is stored is there, also if it is nothing.
    assert_eq!(get(&cache, "c", keep(), None::<u8>).await, None);
    assert_eq!(get(&cache, "c", keep(), Some(1_u8)).await, None);
    get(&cache, "d", keep(), ()).await;
}

#[tokio::test]
async fn an_error_shows_what_went_wrong() {
    #[derive(Debug)]
    struct Outer(Refused);
    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("it failed")
        }
    }
    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }
    let fill = async || Err::<u8, _>(Outer(Refused(2)));
    let error = memory().get_or_fill("a", keep(), fill).await.unwrap_err();
    assert_eq!(error.to_string(), "it failed");
    assert_eq!(error.source().unwrap().to_string(), "refused for the 2th time");
    let error = FillError::<Refused>::Panicked;
    assert_eq!(error.to_string(), "what makes the value has panicked");
    assert!(error.source().is_none());
}

/// Many tasks, many keys, purges in between: one closure at a time for each key and purge, and
/// nothing from before a purge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_the_work_of_64_keys() {
    const KEYS: usize = 64;
    let dice = Dice::new(7);
    let distant = Distant::new(&MemoryStorage::new(), &dice, 0);
    for storage in [MemoryStorage::new().erase(), distant.erase()] {
        let cache = CacheHandle::builder(storage).build();
        let numbers: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| 1.into()).collect());
        let least: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| 0.into()).collect());
        let (calls, gets) = (Arc::new(AtomicUsize::new(0)), count(40, 400));
        let tasks = (0..64).map(|task| {
            let (cache, dice, calls) = (cache.clone(), dice.clone(), Arc::clone(&calls));
            let (numbers, least) = (Arc::clone(&numbers), Arc::clone(&least));
            tokio::spawn(async move {
                for _ in 0..gets {
                    let key = dice.below(KEYS as u64) as usize;
                    if task == 0 {
                        let number = numbers[key].fetch_add(1, SeqCst) + 1;
                        cache.invalidate([format!("tag {key}")]).await.unwrap();
                        least[key].fetch_max(number, SeqCst);
                        dice.pause().await;
                        continue;
                    }
                    let keep = keep().with_tags([format!("tag {key}")]);
                    let expected = least[key].load(SeqCst);
                    let (numbers, calls) = (Arc::clone(&numbers), Arc::clone(&calls));
                    let fill = async move || {
                        calls.fetch_add(1, SeqCst);
                        slowly(numbers[key].load(SeqCst)).await
                    };
                    let value = cache.get_or_fill(format!("key {key}"), keep, fill).await.unwrap();
                    assert!(value >= expected, "{value} after {expected}");
                }
            })
        });
        for task in join_all(tasks).await {
            task.unwrap();
        }
        let calls = calls.load(SeqCst);
        println!("{} gets, {gets} purges, {calls} calls", 63 * gets);
        assert!(calls < 63 * gets / 2, "{calls} calls");
    }
}
