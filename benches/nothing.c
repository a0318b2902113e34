/* A process that does nothing, to measure its start and end. */
int main(void)
{
	return 0;
}
