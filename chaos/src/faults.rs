//! One fault from its begin to its end. What it takes to work again is looked at afterwards.

use consumer_testing::proxy::Direction;
use tokio::{task::block_in_place, time::sleep};

use crate::{
    CONSUMERS, Fallible,
    history::Lane,
    plan::{End, Fault},
    world::World,
};

/// Brings a fault about and takes it away again.
pub(crate) async fn strike(world: &mut World, fault: &Fault) -> Fallible<()> {
    match *fault {
        Fault::KillConsumer { slot } => {
            world.kill_consumers(&[slot]).await?;
            world.start_consumer(slot)
        }
        Fault::KillCutOff { slot, length } => {
            let (end, from) = (End::StoreOf(slot), world.now());
            world.proxies(end).iter().for_each(|proxy| proxy.hang(Direction::Both));
            sleep(length).await;
            world.kill_consumers(&[slot]).await?;
            for proxy in world.proxies(end) {
                // What it has sent is lost with it.
                proxy.cut().await;
                proxy.resume(Direction::Both);
            }
            mark(world, end, "hang", from);
            world.start_consumer(slot)
        }
        Fault::KillConsumers => {
            let slots = world.slots();
            world.kill_consumers(&slots).await?;
            slots.into_iter().try_for_each(|slot| world.start_consumer(slot))
        }
        Fault::StopConsumer { slot, length } => world.stop_consumer(slot, length).await,
        Fault::Leave { slot } => {
            world.end_consumers(&[slot]).await?;
            world.start_consumer(slot)
        }
        Fault::Join { length } => {
            world.start_consumer(CONSUMERS)?;
            sleep(length).await;
            world.end_consumers(&[CONSUMERS]).await
        }
        Fault::KillServer { end, away } => {
            let from = world.now();
            block_in_place(|| match end {
                End::Broker => world.broker.kill(),
                End::Store | End::StoreOf(_) => world.store.kill(),
            });
            sleep(away).await;
            block_in_place(|| match end {
                End::Broker => world.broker.start_again(),
                End::Store | End::StoreOf(_) => world.store.start_again(),
            })?;
            healed(world, end, "SIGKILL", from);
            Ok(())
        }
        Fault::Cut { end, away } => {
            let from = world.now();
            world.proxies(end).iter().for_each(|proxy| proxy.refuse());
            for proxy in world.proxies(end) {
                proxy.cut().await;
            }
            sleep(away).await;
            world.proxies(end).iter().for_each(|proxy| proxy.accept());
            healed(world, end, "cut", from);
            Ok(())
        }
        Fault::Hang { end, length } => {
            let from = world.now();
            world.proxies(end).iter().for_each(|proxy| proxy.hang(Direction::Both));
            sleep(length).await;
            world.proxies(end).iter().for_each(|proxy| proxy.resume(Direction::Both));
            healed(world, end, "hang", from);
            Ok(())
        }
        Fault::Delay { end, by, length } => {
            let from = world.now();
            world.proxies(end).iter().for_each(|proxy| proxy.delay(Direction::Both, by / 2));
            sleep(length).await;
            world.proxies(end).iter().for_each(|proxy| proxy.delay(Direction::Both, Default::default()));
            mark(world, end, "delay", from);
            Ok(())
        }
        Fault::Throttle { end, bytes, length } => {
            let from = world.now();
            world.proxies(end).iter().for_each(|proxy| proxy.throttle(Direction::Both, bytes));
            sleep(length).await;
            world.proxies(end).iter().for_each(|proxy| proxy.throttle(Direction::Both, None));
            mark(world, end, "throttle", from);
            Ok(())
        }
    }
}

fn healed(world: &mut World, end: End, what: &str, from: std::time::Duration) {
    world.store_was_away(end, from);
    mark(world, end, what, from);
}

fn mark(world: &mut World, end: End, what: &str, from: std::time::Duration) {
    match end {
        End::Broker => world.mark(Lane::Broker, what, from),
        End::Store => world.mark(Lane::Store, what, from),
        End::StoreOf(slot) => world.mark(Lane::Store, format!("{what} (of consumer {slot})"), from),
    }
}
