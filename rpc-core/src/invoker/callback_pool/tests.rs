//! Exactly once, whatever happens.

use std::sync::mpsc;

use super::*;
use crate::message::Response;

fn answer() -> Answer {
    Ok(Response::empty())
}

#[test]
fn full_pool_refuses_at_once_and_frees_slots_when_callbacks_start() {
    let pool = CallbackPool::new(1, 2);
    let (sender, received) = mpsc::sync_channel(0);
    let (first, second) = (pool.reserve().unwrap(), pool.reserve().unwrap());
    let error = pool.reserve().err().unwrap();
    assert_eq!((error.code, error.executed), (Code::Overloaded, Executed::No));
    let blocking = sender.clone();
    first.fill(move |_| blocking.send(1).unwrap()).deliver(answer());
    second.fill(move |_| sender.send(2).unwrap()).deliver(answer());
    assert_eq!((received.recv(), received.recv()), (Ok(1), Ok(2)));
    let unused = pool.reserve().unwrap();
    drop(unused);
    assert_eq!(pool.slots.available_permits(), 2);
}

#[test]
fn dropped_call_delivers_cancelled() {
    let pool = CallbackPool::new(1, 1);
    let (sender, received) = mpsc::sync_channel(1);
    drop(
        pool.reserve()
            .unwrap()
            .fill(move |answer| sender.send(answer).unwrap()),
    );
    let error = received.recv().unwrap().unwrap_err();
    assert_eq!((error.code, error.executed), (Code::Cancelled, Executed::Maybe));
}

#[test]
fn panic_of_a_callback_takes_no_thread_with_it() {
    let pool = CallbackPool::new(1, 4);
    let (sender, received) = mpsc::sync_channel(1);
    pool.reserve()
        .unwrap()
        .fill(|_| panic!("on purpose"))
        .deliver(answer());
    pool.reserve()
        .unwrap()
        .fill(move |_| sender.send(()).unwrap())
        .deliver(answer());
    received.recv().unwrap();
}

#[tokio::test]
async fn shutdown_waits_for_accepted_callbacks_and_refuses_new_ones() {
    let pool = CallbackPool::new(2, 10);
    let (sender, received) = mpsc::sync_channel(10);
    for number in 0..10 {
        let sender = sender.clone();
        let pending = pool
            .reserve()
            .unwrap()
            .fill(move |_| sender.send(number).unwrap());
        pending.deliver(answer());
    }
    pool.shutdown().await;
    drop(sender);
    let mut called: Vec<i32> = received.iter().collect();
    called.sort_unstable();
    assert_eq!(called, (0..10).collect::<Vec<_>>());
    assert_eq!(pool.reserve().err().unwrap().code, Code::Cancelled);
    assert_eq!(
        pool.reserve_until(crate::call::now()).await.err().unwrap().code,
        Code::Cancelled
    );
}

#[test]
fn callback_is_called_even_when_its_pool_is_gone() {
    let pool = CallbackPool::new(1, 1);
    let (sender, received) = mpsc::sync_channel(1);
    let pending = pool
        .reserve()
        .unwrap()
        .fill(move |answer| sender.send(answer).unwrap());
    drop(pool);
    pending.deliver(answer());
    assert!(received.recv().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_place_ends_at_the_deadline_or_with_a_place() {
    let pool = CallbackPool::new(1, 1);
    let slot = pool.reserve().unwrap();
    let deadline = crate::call::now() + Duration::from_secs(1);
    let error = pool.reserve_until(deadline).await.err().unwrap();
    assert_eq!(error.code, Code::Overloaded);
    let deadline = crate::call::now() + Duration::from_secs(1);
    let (waited, ()) = tokio::join!(pool.reserve_until(deadline), async { drop(slot) });
    assert!(waited.is_ok());
}
