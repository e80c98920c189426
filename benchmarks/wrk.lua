-- Sends the requests in the files FOLDER/0, FOLDER/1, ... in turn, and prints the result as one line of JSON.
-- wrk -s wrk.lua URL -- FOLDER COUNT
local requests = {}
local turn = 0

function init(arguments)
  for number = 0, arguments[2] - 1 do
    local file = assert(io.open(arguments[1] .. "/" .. number, "rb"))
    requests[number] = file:read("*a")
    file:close()
  end
end

function request()
  turn = (turn + 1) % (#requests + 1)
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, '
      .. '"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
