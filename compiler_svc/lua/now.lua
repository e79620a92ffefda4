-- SPDX-License-Identifier: Apache-2.0
-- The server's clock in ms, by which all deadlines are.
return text(NOW)
