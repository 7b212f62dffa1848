// Threads that share the rows of a weight.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <unistd.h>
#include "product.h"

namespace {

inline void breathe() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks at a condition for a short time: waking a sleeping thread takes longer than what lies between two products of a
// step, but a thread that looks for long takes the processor from others.
template <class Condition>
bool comes_soon(Condition condition) {
  constexpr auto kPatience = std::chrono::microseconds(60);
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      breathe();
    }
  } while (std::chrono::steady_clock::now() - start < kPatience);
  return condition();
}

// The caller starts at once and takes blocks of rows like everyone else, so a thread that comes late costs nothing but its
// share. Threads look for the next product for a moment, then sleep.
class Pool {
 public:
  void run(const Call& call, const Plan& plan, const RowsView& rows, int64_t block, int n_threads) {
    std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
    if (!alone.owns_lock()) return work_on(call, plan, rows, 0, call.out);  // another Python thread has the pool
    while (n_started_ < n_threads - 1) start_one();
    Job job{&call, &plan, &rows, block, {0}};
    wanted_ = n_threads - 1;
    job_ = &job;
    ++serial_;
    if (n_asleep_ > 0) {
      std::lock_guard<std::mutex> guard(state_);
      wake_.notify_all();
    }
    take_blocks(job);
    job_ = nullptr;  // who comes from here on finds nothing to do
    const auto is_done = [this] { return n_inside_ == 0; };
    if (comes_soon(is_done)) return;
    std::unique_lock<std::mutex> lock(state_);
    is_awaited_ = true;
    done_.wait(lock, is_done);
    is_awaited_ = false;
  }

 private:
  struct Job {
    const Call* call;
    const Plan* plan;
    const RowsView* rows;
    int64_t block;
    std::atomic<int64_t> next;
  };

  static void take_blocks(Job& job) {
    const int64_t out = job.call->out;
    for (;;) {
      const int64_t begin = job.next.fetch_add(job.block, std::memory_order_relaxed);
      if (begin >= out) return;
      work_on(*job.call, *job.plan, *job.rows, begin, std::min(out, begin + job.block));
    }
  }

  void start_one() {
    ++n_started_;
    std::thread([this] { serve(); }).detach();
  }

  // Everything here is sequentially consistent: who counts itself in and then finds a job keeps the caller from leaving,
  // and who counts itself asleep and then finds no new number is seen by who writes the next.
  void serve() {
    uint64_t seen = 0;
    const auto has_news = [&] { return serial_ != seen; };
    for (;;) {
      if (!comes_soon(has_news)) {
        std::unique_lock<std::mutex> lock(state_);
        ++n_asleep_;
        wake_.wait(lock, has_news);
        --n_asleep_;
      }
      seen = serial_;
      if (n_inside_++ < wanted_)
        if (Job* job = job_) take_blocks(*job);
      if (--n_inside_ == 0 && is_awaited_) {
        std::lock_guard<std::mutex> guard(state_);
        done_.notify_one();
      }
    }
  }

  std::mutex busy_, state_;
  std::condition_variable wake_, done_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint64_t> serial_{0};
  std::atomic<int> n_asleep_{0}, n_inside_{0}, wanted_{0};
  std::atomic<bool> is_awaited_{false};
  int n_started_ = 0;
};

// Never destroyed: its threads sleep until the process ends. A forked child has none of them and makes its own.
Pool& pool() {
  static std::mutex guard;
  static Pool* made = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(guard);
  if (made == nullptr || owner != getpid()) {
    made = new Pool;
    owner = getpid();
  }
  return *made;
}

// The whole product, by as many threads as were asked for.
void multiply(const Call& call, const Plan& plan, const RowsView& rows) {
  if (call.n_threads <= 1) return work_on(call, plan, rows, 0, call.out);
  const int64_t unit = takes_tiles(call.n_rows, call.group_size) || call.n_rows > kMaxRows ? kPanelRows : kBlock;
  const int64_t block = std::max<int64_t>(2 * unit, call.out / (call.n_threads * 8)) / unit * unit;
  pool().run(call, plan, rows, block, call.n_threads);
}

}  // namespace
