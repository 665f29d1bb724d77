"""Waits that end with a reason, not with a guess of seconds. A busy machine takes its time, and no test may fail by that: what is
waited for has come, or something has happened after which it cannot come, or the machine had nothing to do and still it did not."""
import time
import psutil

class Idle:
    "Seconds that the machine's cores had nothing to do since this was made: while others keep them busy, none pass."
    def __init__(self): self.seconds,self.last,self.t = 0.,psutil.cpu_times(),time.monotonic()
    def look(self):
        now,t = psutil.cpu_times(),time.monotonic()
        total = sum(now)-sum(self.last)
        if total<=0: return self.seconds # the counters have not moved yet
        self.seconds += (t-self.t)*min(1., max(0., (now.idle-self.last.idle)/total))
        self.last,self.t = now,t
        return self.seconds

def wait_until(
    done, # Called again and again until it is true; an exception of its own ends the wait, too
    why_not=lambda: None, # Why it cannot come true any more, as a sentence; None while it still can
    what='', # What is waited for, for the message
    idle=120. # Seconds of an idle machine after which nothing is expected any more; busy ones do not count
):
    "What `done()` gave once it was true. Raises AssertionError with the reason otherwise."
    clock = Idle()
    while not (res := done()):
        if reason := why_not():
            if res := done(): break # it came and then ended
            raise AssertionError(f'{reason}, while waiting for {what or "it"}')
        if clock.look()>idle: raise AssertionError(f'the machine had nothing to do for {idle:.0f} s, and {what or "what is waited for"} did not come')
        time.sleep(.05)
    return res

def ended(proc, what='the process'):
    "Exit code of `proc` (subprocess.Popen), once it has ended."
    wait_until(lambda: proc.poll() is not None, what=f'{what} to end')
    return proc.returncode

def gone(procs):
    "Wait until none of `procs` (psutil.Process) runs any more."
    def running(p):
        try: return p.is_running() and p.status()!=psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess: return False
    wait_until(lambda: not any(map(running, procs)), what=f'{len(procs)} processes to end')
