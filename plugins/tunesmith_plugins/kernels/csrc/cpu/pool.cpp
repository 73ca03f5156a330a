// The threads of ts_parallel: a team that was handed in, or our own, which are made when first needed and sleep between jobs.
// A forked child makes its own.
#include "pool.h"

#include "tunesmith.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace {

struct Job {
  void (*body)(void *, int64_t);
  void *context;
  int64_t count;
  int places;                    // workers that may still join; guarded by the pool's mutex
  int active = 0;                // workers inside; guarded by the pool's mutex
  std::atomic<int64_t> next{0};

  // Returns how many pieces it did.
  int64_t work() {
    for (int64_t done = 0;; ++done) {
      const int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) return done;
      body(context, index);
    }
  }
};

class Pool {
 public:
  void run(int32_t threads, Job &job) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (job_) {  // taken by another caller
        lock.unlock();
        job.work();
        return;
      }
      while (workers_ < threads - 1 && start()) {
      }
      job.places = threads - 1;
      job_ = &job;
    }
    for (int32_t i = 1; i < threads; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [&] { return job.active == 0; });
  }

 private:
  bool start() {
    try {
      std::thread([this] { serve(); }).detach();
    } catch (...) {
      return false;  // no more threads to be had: the caller does the work
    }
    ++workers_;
    return true;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ && job_->places > 0; });
      Job &job = *job_;
      --job.places;
      ++job.active;
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.active == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job *job_ = nullptr;
  int32_t workers_ = 0;
};

// Whether a team is worth its while. Its threads wait for one another: where one of them sleeps, or others have its core, a
// call takes longer than it would have alone, by milliseconds at worst. After that no call is shared for eight times as long as
// was lost, and twice that for every loss that no gain has made up for; but one that takes more than eight times as long as was
// lost is: the rows of a layer that were quantised in vain by two threads do not leave its products to one.
class Patience {
 public:
  using Clock = std::chrono::steady_clock;

  // `cost`: roughly what the call takes alone, in microseconds; 0: not known.
  bool out(Clock::time_point now, double cost) const {
    return now < until_ && cost < 8 * std::chrono::duration<double, std::micro>(lost_).count();
  }
  // A call from start to end, whose caller did some pieces of all until `done`.
  void learn(Clock::time_point start, Clock::time_point done, Clock::time_point end, int64_t some, int64_t all) {
    const Clock::duration alone = some ? (done - start) * all / some : Clock::duration::max();
    if (end - start <= alone) {
      losses_ -= losses_ > 0;
      return;
    }
    const Clock::duration lost = end - start - alone, longest = std::chrono::seconds(1);
    const Clock::duration pause = lost * (int64_t(8) << losses_);
    const Clock::time_point until = end + (pause < longest ? pause : longest);
    losses_ += losses_ < 10;
    if (until <= until_) return;  // a long call within the pause of a greater loss
    until_ = until;
    lost_ = lost;
  }

 private:
  Clock::time_point until_{};
  Clock::duration lost_{};  // by the last call that lost
  int losses_ = 0;  // less the gains since
};

// Pools live for ever: their threads may be asleep in them when the process ends, and after a fork the parent's pool is unusable
// in the child (its threads are gone, its mutex may be locked), and so is its team.
std::atomic<Pool *> current{nullptr};
std::atomic<ts_team> team{nullptr};      // see ts_use_team
std::atomic<bool> team_taken{false};     // one call at a time has it
Patience patience;                       // of who has it

// Called in the child of a fork: asking for the process's number in every call would take longer than handing work over.
void after_fork() {
  current.store(nullptr, std::memory_order_relaxed);
  team.store(nullptr, std::memory_order_relaxed);
  team_taken.store(false, std::memory_order_relaxed);
}

void watch_forks() {
#if !defined(_WIN32)
  static const int watching = pthread_atfork(nullptr, nullptr, after_fork);
  (void)watching;
#else
  (void)after_fork;
#endif
}

// The caller's part of a shared job, in which nobody else looks.
struct Shared {
  Job &job;
  const std::thread::id caller;
  int64_t some = 0;
  Patience::Clock::time_point done{};

  void work() {
    if (std::this_thread::get_id() != caller) {
      job.work();
      return;
    }
    some = job.work();
    done = Patience::Clock::now();
  }
};

Pool &pool() {
  Pool *found = current.load(std::memory_order_acquire);
  if (!found) {
    watch_forks();
    Pool *made = new Pool;
    if (current.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
    delete made;
  }
  return *found;
}

}  // namespace

extern "C" void ts_use_team(ts_team function) {
  watch_forks();
  while (team_taken.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
  patience = {};  // the one before says nothing of this one
  team.store(function, std::memory_order_release);
  team_taken.store(false, std::memory_order_release);
}

bool ts_has_team() { return team.load(std::memory_order_relaxed) != nullptr; }

void ts_parallel(int32_t threads, int64_t count, double cost, void (*body)(void *, int64_t), void *context) {
  if (threads <= 1 || count <= 1) {
    for (int64_t index = 0; index < count; ++index) body(context, index);
    return;
  }
  Job job;
  job.body = body;
  job.context = context;
  job.count = count;
  job.places = 0;
  const ts_team here = team.load(std::memory_order_acquire);
  if (!here) return pool().run(threads < count ? threads : (int32_t)count, job);
  if (team_taken.exchange(true, std::memory_order_acquire)) {
    job.work();
    return;
  }
  const Patience::Clock::time_point start = Patience::Clock::now();
  if (patience.out(start, cost)) {
    team_taken.store(false, std::memory_order_release);
    job.work();
    return;
  }
  Shared shared = {job, std::this_thread::get_id()};
  // All of them though some may find nothing: GOMP ends threads that a smaller team leaves over, and starts new ones later.
  here([](void *context) { ((Shared *)context)->work(); }, &shared, (unsigned)threads, 0);
  patience.learn(start, shared.done, Patience::Clock::now(), shared.some, count);
  team_taken.store(false, std::memory_order_release);
}
